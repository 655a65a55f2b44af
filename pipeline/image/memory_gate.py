"""Limits how many pictures are decoded at the same time, so that they fit into memory together."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class MemoryGate:
    """Lets pictures be decoded at the same time as long as they fit into memory together. Thread-safe.

    Pictures are served in order of arrival; otherwise a large one would wait as long as smaller ones keep arriving.
    """

    FREE_BYTES = 8 << 20
    """Pictures that need at most this much do not wait."""

    def __init__(self, total_bytes: float) -> None:
        self._total = self._left = total_bytes
        self._changed = threading.Condition()
        self._queue: list[int] = []  # thread ids
        self._working_since: dict[int, float] = {}  # thread id -> time.monotonic(); absent while waiting

    @property
    def oldest_start(self) -> float | None:
        """When the work on the oldest picture in progress began (time.monotonic()); None if there is none.

        Waiting at the gate does not count: if sixty large pictures are decoded one by one, no decoder is hung.
        """
        return min(list(self._working_since.values()), default=None)

    @contextmanager
    def entry(self) -> Iterator[Callable[[float], None]]:
        """Yield a function that waits until a number of bytes are free and reserves them until the `with` block ends.
        Call it at most once: a caller that already has memory and waits for more could wait forever."""
        held = 0.0
        thread = threading.get_ident()

        def reserve(num_bytes: float) -> None:
            nonlocal held
            if num_bytes <= self.FREE_BYTES:
                return
            wanted = min(num_bytes, self._total)
            del self._working_since[thread]
            with self._changed:
                self._queue.append(thread)
                self._changed.wait_for(lambda: self._queue[0] == thread and wanted <= self._left)
                self._queue.remove(thread)
                self._left -= wanted
                self._changed.notify_all()  # the next picture may fit, too
            held = wanted
            self._working_since[thread] = time.monotonic()

        self._working_since[thread] = time.monotonic()
        try:
            yield reserve
        finally:
            self._working_since.pop(thread, None)
            if held:
                with self._changed:
                    self._left += held
                    self._changed.notify_all()
