"""Bytes in memory that several processes on this machine map instead of copying."""

import mmap
import os
from typing import Any

import pyarrow as pa

from pairmill.jobs.cluster.memory_file import new_memory_file

_PIECE_BYTES = 1 << 30  # Linux writes at most 2 GiB at once


class SharedBytes:
    """An open file in memory. Its memory is free once no process has it open or mapped, however these processes end."""

    def __init__(self, file: int) -> None:
        """Takes over a descriptor."""
        self.file = file

    @classmethod
    def of(cls, data: Any) -> "SharedBytes":
        """A copy of a buffer's bytes. Raises OSError if there is no room for them."""
        shared = cls(new_memory_file())
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(shared.file, view[:_PIECE_BYTES]) :]
        return shared

    def mapped(self) -> pa.Buffer:
        """The bytes, which stay mapped as long as the buffer exists."""
        return pa.py_buffer(mmap.mmap(self.file, 0, prot=mmap.PROT_READ))

    def __del__(self) -> None:
        os.close(self.file)
