"""Tests that faults of this machine are recognized by type and code, never by message, which a server can write."""

import errno

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pairmill.pipeline.common.child import Child
from pairmill.pipeline.common.faults import Failure, LocalFault, local_fault
from pairmill.pipeline.encode.weights import ModelError
from pairmill.pipeline.rules.custom import CustomRuleError
from pairmill.pipeline.source.cursor import ReadError
from pairmill.schemas.errors import FailureKind, PairmillError


def opencv_error(width: int) -> cv2.error:
    with pytest.raises(cv2.error) as caught:
        cv2.resize(np.zeros((2, 2, 3), np.uint8), (width, 1 << 30))
    return caught.value


def test_opencv_reports_lack_of_memory_with_an_error_code() -> None:
    assert isinstance(local_fault(opencv_error(1 << 30)), LocalFault)
    assert local_fault(opencv_error(0)) is None  # the error is about an empty picture


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "files"), OSError(errno.ENOSPC, "disk")])
def test_running_out_of_memory_file_descriptors_or_disk_is_a_local_fault(error: Exception) -> None:
    assert isinstance(local_fault(error), LocalFault)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Insufficient memory"),
        OSError("[Errno 24] Too many open files"),
        OSError(errno.ECONNREFUSED, "Insufficient memory"),
    ],
)
def test_the_text_of_an_error_never_makes_it_a_local_fault(error: Exception) -> None:
    assert local_fault(error) is None


def run_out_of_memory() -> None:
    raise MemoryError


def nothing() -> None: ...


def test_a_local_fault_in_a_child_process_is_raised_as_a_local_fault() -> None:
    child = Child(nothing)
    with pytest.raises(LocalFault, match="MemoryError"):
        child.call(run_out_of_memory, timeout_s=30)
    child.close()


@pytest.mark.parametrize(
    ("cause", "wrapper", "kind"),
    [
        (OSError(errno.EMFILE, "files"), ReadError, FailureKind.MACHINE),
        (pa.ArrowMemoryError("malloc"), ReadError, FailureKind.MACHINE),
        (MemoryError(), CustomRuleError, FailureKind.MACHINE),
        (OSError(errno.ENOSPC, "disk"), ModelError, FailureKind.STORAGE),
        (LocalFault("the child is out of memory"), CustomRuleError, FailureKind.MACHINE),
        (ValueError("a bug"), CustomRuleError, FailureKind.JOB),
        (OSError(errno.EIO, "a bad sector"), ReadError, FailureKind.INPUT),
    ],
)
def test_a_machine_fault_is_recognized_whatever_error_wraps_it(
    cause: Exception, wrapper: type[PairmillError], kind: FailureKind
) -> None:
    with pytest.raises(wrapper) as raised:
        raise wrapper("what we say of it") from cause
    failure = Failure.of(raised.value)
    assert (failure.kind, failure.message) == (kind, "what we say of it")


def test_lack_of_memory_while_handling_one_of_our_errors_is_a_machine_fault() -> None:
    def out_of_memory_in_a_handler() -> None:
        try:
            raise ModelError("weights")
        except ModelError:
            raise MemoryError  # noqa: B904 - the context, not a cause, is what the test is about

    with pytest.raises(MemoryError) as raised:
        out_of_memory_in_a_handler()
    assert Failure.of(raised.value).kind is FailureKind.MACHINE
