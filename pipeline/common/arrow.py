"""Builds Arrow arrays with as few copies as the format allows."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa


def binary_column(values: Sequence[bytes | None]) -> pa.Array:
    """A large_binary array made with one copy of the bytes; a builder would grow and copy them several times."""
    offsets = np.fromiter(accumulate((len(value or b"") for value in values), initial=0), np.int64, len(values) + 1)
    valid = np.packbits(np.array([value is not None for value in values], bool), bitorder="little")
    data = b"".join(value for value in values if value is not None)
    buffers = [pa.py_buffer(valid), pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(values), buffers)
