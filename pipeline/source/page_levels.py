"""Finds how much data a few bytes of a Parquet page can encode: the longest row and the longest dictionary entry.

Repetition levels and dictionaries are decoded as in https://parquet.apache.org/docs/file-format/data-pages/encodings.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.source.pages import DATA_V2, Page, varint

_MAX_RUNS = 1 << 20
_MAX_DICTIONARY_BYTES = 16 << 20


def longest_row(file: IO[bytes], pages: Iterable[Page], codec: str, max_level: int) -> int:
    """The maximum number of values in one row of a nested column. A row begins where the repetition level is 0.

    `pages`: the chunk's data pages. Levels that cannot be decoded count as a single row.
    """
    longest = current = 0
    for page in pages:
        try:
            for is_start in _row_starts(file, page, codec, max_level.bit_length()):
                starts = np.flatnonzero(is_start)
                if not len(starts):
                    current += len(is_start)
                    continue
                longest = max(longest, current + int(starts[0]), int(np.diff(starts).max(initial=0)))
                current = len(is_start) - int(starts[-1])
        except (ValueError, IndexError, struct.error, pa.ArrowException, OSError):
            current += page.num_values
    return max(longest, current)


def longest_entry(file: IO[bytes], page: Page, codec: str) -> int:
    """Bytes of the longest text in a dictionary page, or the size of the page as an upper bound."""
    if page.num_bytes > _MAX_DICTIONARY_BYTES:
        return page.num_bytes
    try:
        data = _unpack(_body(file, page), page.num_bytes, codec)
        longest = position = 0
        for _ in range(page.num_values):
            (length,) = struct.unpack_from("<I", data, position)
            longest, position = max(longest, length), position + 4 + length
    except (ValueError, struct.error, pa.ArrowException, OSError):
        return page.num_bytes
    return min(longest, page.num_bytes)


def _row_starts(file: IO[bytes], page: Page, codec: str, width: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Whether each value of a page is the first of its row, run by run."""
    body, left = _body(file, page), page.num_values
    if page.kind == DATA_V2:
        levels = body[: page.levels_bytes]
    else:
        data = _unpack(body, page.num_bytes, codec)
        (length,) = struct.unpack_from("<I", data)
        levels = data[4 : 4 + length]
    position = 0
    for _ in range(_MAX_RUNS):
        if left <= 0:
            return
        header, position = varint(levels, position)
        if header & 1:  # bit-packed, in groups of 8
            end = position + (header >> 1) * width
            bits = np.unpackbits(np.frombuffer(levels[position:end], np.uint8), bitorder="little")
            is_start = ~np.any(bits.reshape(-1, width), axis=1)
            position, run = end, is_start[:left]
            if not len(run):
                raise ValueError("the levels end before the values")
            left -= len(run)
            yield run
            continue
        count, level_bytes = min(header >> 1, left), -(-width // 8)
        is_zero = not any(levels[position : position + level_bytes])
        position, left = position + level_bytes, left - count
        yield from _repeat(is_zero, count)
    raise ValueError("too many runs")


def _repeat(is_start: bool, count: int) -> Iterator[npt.NDArray[np.bool_]]:
    """A run of equal levels, in pieces of a megabyte, because a run's header can announce two billion levels."""
    for start in range(0, count, 1 << 20):
        yield np.full(min(count - start, 1 << 20), is_start)


def _body(file: IO[bytes], page: Page) -> bytes:
    file.seek(page.position)
    return file.read(page.packed_bytes)


def _unpack(data: bytes, num_bytes: int, codec: str) -> bytes:
    if codec == "UNCOMPRESSED":
        return data
    return pa.decompress(data, num_bytes, codec=codec.lower(), asbytes=True)  # type: ignore[no-any-return]
