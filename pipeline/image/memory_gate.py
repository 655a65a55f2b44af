"""Limits how many pictures are decoded at the same time, so that they fit into memory together."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class MemoryGate:
    """Allows pictures to be decoded at the same time as long as they fit into memory together. Thread-safe."""

    FREE_BYTES = 8 << 20
    """Pictures that take less do not wait."""

    def __init__(self, total_bytes: float) -> None:
        self._total = self._left = total_bytes
        self._changed = threading.Condition()

    @contextmanager
    def entry(self) -> Iterator[Callable[[float], None]]:
        """A function that waits until a number of bytes are free, and reserves them until the end of the block. Call it
        at most once: a caller that already has some and waits for more could wait forever."""
        held = 0.0

        def reserve(num_bytes: float) -> None:
            nonlocal held
            if num_bytes <= self.FREE_BYTES:
                return
            wanted = min(num_bytes, self._total)
            with self._changed:
                self._changed.wait_for(lambda: wanted <= self._left)
                self._left -= wanted
            held = wanted

        try:
            yield reserve
        finally:
            if held:
                with self._changed:
                    self._left += held
                    self._changed.notify_all()
