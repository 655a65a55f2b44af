"""Whose fault a failure is: this machine's (out of files, of memory, of disk), or the row's, shard's or job's.

No row is to blame for a fault of the machine, and none may be lost to it: the shard fails, and a later run repeats it.
"""

import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from pairmill.pipeline.common.text import last_line, trace_of
from pairmill.schemas.errors import FailureKind, PairmillError

LOCAL_ERRNOS = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


class LocalFault(PairmillError, RuntimeError):
    """This machine cannot go on. The message says with what."""

    kind = FailureKind.MACHINE


class DiskFull(LocalFault):
    """A disk has no room left."""

    kind = FailureKind.STORAGE


def local_fault(error: BaseException) -> LocalFault | None:
    """The LocalFault that an exception is; None for any other."""
    if isinstance(error, LocalFault):
        return error
    number = getattr(error, "errno", None)
    if number in _FULL_ERRNOS:
        return DiskFull("no room left on the disk of the output, or of a worker's temporary folder")
    if isinstance(error, MemoryError) or number in LOCAL_ERRNOS or _is_opencv_out_of_memory(error):
        return LocalFault(f"{type(error).__name__}: {error}")
    return None


def _is_opencv_out_of_memory(error: BaseException) -> bool:
    """OpenCV raises its own error with a code where Python would raise MemoryError.

    To be called while the error is handled: OpenCV keeps the code of its latest error, on the class.
    """
    cv2 = sys.modules.get("cv2")  # if it is not loaded, no error can come from it
    return cv2 is not None and isinstance(error, cv2.error) and getattr(error, "code", None) == cv2.Error.StsNoMem


@dataclass(frozen=True)
class Failure:
    """What became of a shard that failed: whose fault, in one line, and the whole traceback."""

    kind: FailureKind
    message: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Judge by types and error numbers, never by words: some of them are a server's."""
        for cause in _causes(error):
            if isinstance(cause, PairmillError):
                return cls(cause.kind, str(cause), trace_of(error))
            if (fault := local_fault(cause)) is not None:
                return cls(fault.kind, str(fault), trace_of(error))
        return cls(FailureKind.SHARD, last_line(trace_of(error)), trace_of(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, and those that it was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
