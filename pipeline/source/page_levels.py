"""Finds how much data a few bytes of a Parquet page can encode: the longest row, and the lengths of values that are in
a dictionary.

Levels, dictionaries and their indices are decoded as in https://parquet.apache.org/docs/file-format/data-pages/encodings.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.source.pages import Page, varint

_MAX_RUNS = 1 << 20
_PIECE_VALUES = 1 << 16
_MAX_PAGE_VALUES = 1 << 23
_MAX_DICTIONARY_BYTES = 16 << 20


def longest_row(file: IO[bytes], pages: Iterable[Page], codec: str, max_level: int) -> int:
    """The maximum number of values in one row of a nested column. A row begins where the repetition level is 0.

    `pages`: the chunk's data pages. Levels that cannot be decoded count as a single row.
    """
    longest = current = 0
    for page in pages:
        try:
            for is_start in _row_starts(file, page, codec, max_level):
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
        longest = int(entry_lengths(file, page, codec).max(initial=0))
    except (ValueError, struct.error, pa.ArrowException, OSError):
        return page.num_bytes
    return min(longest, page.num_bytes)


def entry_lengths(file: IO[bytes], page: Page, codec: str) -> npt.NDArray[np.int64]:
    """Bytes of each text in a dictionary page. Raises an error if the page cannot be decoded."""
    data = _unpack(_body(file, page), page.num_bytes, codec)
    lengths = array("q")
    position = 0
    for _ in range(page.num_values):
        (length,) = struct.unpack_from("<I", data, position)
        lengths.append(length)
        position += 4 + length
    return np.frombuffer(lengths, np.int64)


def value_lengths(
    file: IO[bytes], page: Page, codec: str, max_levels: tuple[int, int], entries: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Bytes of each value of a data page that refers to a dictionary with these lengths of entries; 0 for null.

    `max_levels`: the column's maximum repetition and definition level. Raises an error if the page cannot be decoded.
    """
    if page.num_values > _MAX_PAGE_VALUES:
        raise ValueError("a page with too many values")
    levels, values = _split(file, page, codec, max_levels)
    if page.level_bytes is not None and page.is_packed:
        values = _unpack(values, page.num_bytes - sum(page.level_bytes), codec)
    sizes = np.zeros(page.num_values, np.int64)
    is_value = np.ones(page.num_values, np.bool_)
    if max_levels[1]:
        found = _runs(levels[1], max_levels[1].bit_length(), page.num_values)
        is_value = np.concatenate([run == max_levels[1] for run in found])
    if num_values := int(np.count_nonzero(is_value)):
        sizes[is_value] = entries[np.concatenate(list(_runs(values[1:], values[0], num_values)))]
    return sizes


def _row_starts(file: IO[bytes], page: Page, codec: str, max_level: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Whether each value of a page is the first of its row, run by run."""
    (levels, _), _ = _split(file, page, codec, (max_level, 0))
    for run in _runs(levels, max_level.bit_length(), page.num_values):
        yield run == 0


def _split(file: IO[bytes], page: Page, codec: str, max_levels: tuple[int, int]) -> tuple[list[bytes], bytes]:
    """([repetition levels, definition levels], values) of a data page. Levels are empty if their maximum is 0; the
    values are still packed if the page has `level_bytes`."""
    data = _body(file, page) if page.level_bytes is not None else _unpack(_body(file, page), page.num_bytes, codec)
    levels = []
    for number, max_level in enumerate(max_levels):
        length = 0
        if page.level_bytes is not None:
            length = page.level_bytes[number]
        elif max_level:
            (length,) = struct.unpack_from("<I", data)
            data = data[4:]
        levels.append(data[:length])
        data = data[length:]
    return levels, data


def _runs(data: bytes, width: int, count: int) -> Iterator[npt.NDArray[np.uint32]]:
    """The `count` integers of `width` bits in runs, piece by piece, because a run's header can announce two billion."""
    position, left = 0, count
    for _ in range(_MAX_RUNS):
        if left <= 0:
            return
        header, position = varint(data, position)
        if header & 1:  # bit-packed, in groups of 8
            end = position + (header >> 1) * width
            pieces = _unpacked(data[position:end], width) if width else _repeat(0, (header >> 1) * 8)
        else:
            end = position + -(-width // 8)
            pieces = _repeat(int.from_bytes(data[position:end], "little"), min(header >> 1, left))
        position, before = end, left
        for piece in pieces:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return
        if left == before:
            raise ValueError("the levels end before the values")
    raise ValueError("too many runs")


def _body(file: IO[bytes], page: Page) -> bytes:
    file.seek(page.position)
    return file.read(page.packed_bytes)


def _unpack(data: bytes, num_bytes: int, codec: str) -> bytes:
    if codec == "UNCOMPRESSED":
        return data
    if codec == "LZ4":  # Arrow's codec of this name has another format
        return b"".join(_decompress(block, size, "lz4_raw") for size, block in _lz4_blocks(data, num_bytes))
    return _decompress(data, num_bytes, codec.lower())


def _lz4_blocks(data: bytes, num_bytes: int) -> list[tuple[int, bytes]]:
    """(unpacked size, block) of each block of an LZ4 page: one, as in LZ4_RAW, or several, each after its two sizes, as
    Hadoop writes. Arrow calls both codecs LZ4."""
    blocks, position, total = [], 0, 0
    while position + 8 <= len(data) and total < num_bytes:
        size, packed_bytes = struct.unpack_from(">II", data, position)
        position += 8
        blocks.append((size, data[position : position + packed_bytes]))
        position, total = position + packed_bytes, total + size
    return blocks if (position, total) == (len(data), num_bytes) else [(num_bytes, data)]


def _decompress(data: bytes, num_bytes: int, codec: str) -> bytes:
    return pa.decompress(data, num_bytes, codec=codec, asbytes=True)  # type: ignore[no-any-return]


def _repeat(value: int, count: int) -> Iterator[npt.NDArray[np.uint32]]:
    for start in range(0, count, _PIECE_VALUES):
        yield np.full(min(count - start, _PIECE_VALUES), value, np.uint32)


def _unpacked(data: bytes, width: int) -> Iterator[npt.NDArray[np.uint32]]:
    piece_bytes = _PIECE_VALUES // 8 * width
    for start in range(0, len(data), piece_bytes):
        bits = np.unpackbits(np.frombuffer(data[start : start + piece_bytes], np.uint8), bitorder="little")
        count = len(bits) // width
        padded = np.zeros((count, 32), np.uint8)
        padded[:, :width] = bits[: count * width].reshape(count, width)
        yield np.packbits(padded, axis=1, bitorder="little").view("<u4").ravel()
