"""Durations that only the inside of a stage knows, handed to whoever watches: an engine, or nobody."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_sink: Callable[[str, float], None] | None = None


def report_to(sink: Callable[[str, float], None] | None) -> None:
    """Where this process's durations go from now on, as (name, seconds)."""
    global _sink
    _sink = sink


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Report how long the block took."""
    started = time.perf_counter()
    yield
    if _sink is not None:
        _sink(name, time.perf_counter() - started)
