"""Faults of this machine, as against those of a row: out of files, of memory, of processes.

No row is to blame for them and none may be lost to them: the shard fails, and a later run does it again.
"""

import errno

from pairmill.schemas.errors import FailureKind, PairmillError

LOCAL_ERRNOS = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})

_OUT_OF_MEMORY = "Insufficient memory"
"""What OpenCV says (StsNoMem) where Python would raise MemoryError."""


class LocalFault(PairmillError, RuntimeError):
    """This machine cannot go on. The message says with what."""

    kind = FailureKind.MACHINE


def local_fault(error: BaseException) -> LocalFault | None:
    """The LocalFault that an exception is, or comes from; None for any other."""
    if isinstance(error, LocalFault):
        return error
    is_local = isinstance(error, MemoryError) or getattr(error, "errno", None) in LOCAL_ERRNOS
    if is_local or _OUT_OF_MEMORY in str(error):
        return LocalFault(f"{type(error).__name__}: {error}")
    return None
