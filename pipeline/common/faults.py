"""Decides what caused a failure: this machine (out of file descriptors, memory or disk space), or the row, shard or
job.

A machine fault must not lose rows, so the shard fails and a later run repeats it.
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
    """This machine has run out of a resource. The message names the resource."""

    kind = FailureKind.MACHINE


class DiskFull(LocalFault):
    """A disk is full."""

    kind = FailureKind.STORAGE


def local_fault(error: BaseException) -> LocalFault | None:
    """The exception as a LocalFault. None if this machine is not at fault."""
    if isinstance(error, LocalFault):
        return error
    number = getattr(error, "errno", None)
    if number in _FULL_ERRNOS:
        return DiskFull("no space left on the disk of the output or of a worker's temporary folder")
    if isinstance(error, MemoryError) or number in LOCAL_ERRNOS or _is_opencv_out_of_memory(error):
        return LocalFault(f"{type(error).__name__}: {error}")
    return None


def _is_opencv_out_of_memory(error: BaseException) -> bool:
    """Whether OpenCV ran out of memory. In that case, it raises its own error with a code, not MemoryError.

    Call this while handling the error, because OpenCV stores the code on the class, where the next error overwrites it.
    """
    cv2 = sys.modules.get("cv2")  # not loaded: the error cannot be OpenCV's
    return cv2 is not None and isinstance(error, cv2.error) and getattr(error, "code", None) == cv2.Error.StsNoMem


@dataclass(frozen=True)
class Failure:
    """The failure of a shard: its cause, one line for people, and the full traceback."""

    kind: FailureKind
    message: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Classify an exception by type and error number, never by message text, which may come from servers."""
        for cause in _causes(error):
            if isinstance(cause, PairmillError):
                fault = next(filter(None, map(local_fault, _explicit_causes(cause))), None)
                return cls((fault or cause).kind, str(cause), trace_of(error))
            if (fault := local_fault(cause)) is not None:
                return cls(fault.kind, str(fault), trace_of(error))
        return cls(FailureKind.SHARD, last_line(trace_of(error)), trace_of(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and its chain of causes and contexts."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explicit_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and its explicit causes (`raise ... from`), so that our own errors can wrap a DiskFull."""
    while error is not None:
        yield error
        error = error.__cause__
