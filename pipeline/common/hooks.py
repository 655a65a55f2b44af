"""Connects stages to the process that runs them, to report durations, progress and hung decoders."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pairmill.pipeline.common.progress import WorkProgress


@dataclass(frozen=True)
class WorkerHooks:
    """Callbacks that a stage receives when it is opened. The defaults suit a process that runs all stages itself."""

    observe: Callable[[str, float], None] | None = None
    """Receives the durations that a stage measures, as (name, seconds)."""
    progress: WorkProgress = field(default_factory=WorkProgress)
    """Counts the work that the stage has done inside its shards."""
    on_hang: Callable[[], None] | None = None
    """Called when a decoder hangs in C code, where only the end of the process can stop its thread. None: keep
    waiting."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Report the duration of the block."""
        started = time.perf_counter()
        yield
        if self.observe is not None:
            self.observe(name, time.perf_counter() - started)


NO_HOOKS = WorkerHooks()
"""The hooks of a process that runs all stages itself."""
