"""Reads matrices from safetensors files, a few rows at a time."""

import json
from collections.abc import Iterator
from typing import IO

import numpy as np
import numpy.typing as npt

_DTYPES = {"F16": np.dtype("<f2"), "U64": np.dtype("<u8")}
_MAX_HEADER_BYTES = 100_000_000
"""The limit of the format: https://github.com/huggingface/safetensors#format."""
_BLOCK_BYTES = 1 << 22


def read_tensors(file: IO[bytes]) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """(name, some rows) of all float16 and uint64 matrices, a block at a time. Skips what is damaged."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        return
    try:
        header = json.loads(file.read(length))
        found = [
            (name, _DTYPES[about["dtype"]], *map(int, (*about["shape"], about["data_offsets"][0])))
            for name, about in header.items()
            if about.get("dtype") in _DTYPES and len(about["shape"]) == 2
        ]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return
    for name, dtype, rows, columns, offset in found:
        width = columns * dtype.itemsize
        if not width:
            continue
        file.seek(8 + length + offset)
        while rows > 0 and (data := file.read(min(rows, max(1, _BLOCK_BYTES // width)) * width)):
            whole = len(data) // width
            yield name, np.frombuffer(data[: whole * width], dtype).reshape(whole, columns)
            rows = rows - whole if whole else 0
