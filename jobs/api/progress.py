"""Chooses the listener for a run's progress: the console, unless the caller says otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager

from pairmill.jobs.progress import ProgressListener, default_progress

Progress = bool | ProgressListener
"""True shows a live line on stderr or below the notebook cell. False prints nothing. Or pass your own listener."""


@contextmanager
def listener_for(progress: Progress) -> Iterator[ProgressListener | None]:
    """The listener, for the duration of the block."""
    if progress is False:
        yield None
    elif progress is True:
        console = default_progress()
        try:
            yield console
        finally:
            console.close()
    else:
        yield progress
