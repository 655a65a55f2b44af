"""Holds back what Ray writes to stderr while it starts, if the process is pairmill's own: the command line.

A function called from Python shares file descriptor 2 with the rest of its process, so it leaves it alone.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from pairmill.jobs.cluster.ray_token import SessionError

_owners: list[str] = []


@contextmanager
def own_process() -> Iterator[None]:
    """The block is the whole work of this process, so that pairmill may redirect its stderr."""
    _owners.append("command line")
    try:
        yield
    finally:
        _owners.pop()


@contextmanager
def held_back_stderr() -> Iterator[None]:
    """Hold back what Ray's C++ core writes to stderr while it starts, and show it only if the start fails without a
    SessionError. Changes nothing outside `own_process`."""
    if not _owners:
        yield
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # otherwise the user sees messages about Ray's internals
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except SessionError:
            raise
        except BaseException:
            aside.seek(0)
            os.write(real, aside.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)
