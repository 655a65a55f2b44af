"""What the process around a stage offers it: a sink for durations, and a way out of a decoder that hangs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerHooks:
    """Handed to a stage when it is opened. The defaults suit a process that runs all stages itself."""

    observe: Callable[[str, float], None] | None = None
    """Takes durations that only the inside of a stage knows: (name, seconds)."""
    on_hang: Callable[[], None] | None = None
    """Called when a decoder hangs in C code, where only the end of the process frees its thread; None: wait for it."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Report how long the block took."""
        started = time.perf_counter()
        yield
        if self.observe is not None:
            self.observe(name, time.perf_counter() - started)


NO_HOOKS = WorkerHooks()
"""Of a process that runs all stages itself."""
