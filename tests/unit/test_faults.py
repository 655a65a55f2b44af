"""Faults of this machine are recognized by type and code, never by text: a server may write anything."""

import errno

import cv2
import numpy as np
import pytest

from pairmill.pipeline.common.child import Child
from pairmill.pipeline.common.faults import LocalFault, local_fault


def opencv_error(width: int) -> cv2.error:
    with pytest.raises(cv2.error) as caught:
        cv2.resize(np.zeros((2, 2, 3), np.uint8), (width, 1 << 30))
    return caught.value


def test_opencv_tells_by_a_code_that_it_is_out_of_memory() -> None:
    assert isinstance(local_fault(opencv_error(1 << 30)), LocalFault)
    assert local_fault(opencv_error(0)) is None  # an empty picture


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "files"), OSError(errno.ENOSPC, "disk")])
def test_a_machine_without_memory_files_or_disk_is_at_fault(error: Exception) -> None:
    assert isinstance(local_fault(error), LocalFault)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Insufficient memory"),
        OSError("[Errno 24] Too many open files"),
        OSError(errno.ECONNREFUSED, "Insufficient memory"),
    ],
)
def test_the_text_of_an_error_makes_no_fault_of_this_machine(error: Exception) -> None:
    assert local_fault(error) is None


def run_out_of_memory() -> None:
    raise MemoryError


def nothing() -> None: ...


def test_a_fault_inside_a_child_process_comes_out_as_a_fault() -> None:
    child = Child(nothing)
    with pytest.raises(LocalFault, match="MemoryError"):
        child.call(run_out_of_memory, timeout_s=30)
    child.close()
