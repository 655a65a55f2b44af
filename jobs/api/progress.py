"""Who is told how a run goes: the console unless the caller says otherwise."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pairmill.jobs.build import ProgressListener
from pairmill.jobs.progress import ConsoleProgress

Progress = bool | ProgressListener
"""True: shown as the command shows it, on stderr. False: nothing is printed. Else: a listener of your own."""


@contextmanager
def listener_for(progress: Progress) -> Iterator[ProgressListener | None]:
    """The listener for the time of the block."""
    if progress is False:
        yield None
    elif progress is True:
        console = ConsoleProgress(sys.stderr)  # of now: notebooks and tests replace it
        try:
            yield console
        finally:
            console.close()
    else:
        yield progress
