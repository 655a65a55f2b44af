"""Estimates the size of the pictures in a Parquet file from its metadata alone, without reading them.

The footer gives the size of each row group, and a page header the size of its page. Pages are looked up only in row
groups that are larger than a shard may be, so a file of ordinary size costs a few hundred bytes.
"""

from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import Files

MAX_SHARD_BYTES = 1 << 30
"""Maximum bytes of pictures in a planned shard, which several workers keep in memory."""

_HEADER_BYTES = 4_096
"""More than any page header takes without statistics."""
_MAX_FIELDS, _MAX_DEPTH = 100, 4
_DATA_PAGE, _DATA_PAGE_V2 = 5, 8

Struct: TypeAlias = dict[int, Any]
"""A Thrift struct: field number -> value."""


def shard_ends(uri: str, files: Files, column: str, first_row: int, num_rows: int, shard_rows: int) -> list[int]:
    """Cut `num_rows` rows, starting at `first_row`, into shards of at most `shard_rows`. Returns the row after each.

    Shards have at most MAX_SHARD_BYTES judging by the averages of their pages. In total, the pages that a shard touches
    do not have more than that either, unless the shard is within a single page.
    """
    rows, num_bytes = _cumulative_bytes(uri, files, column)
    ends, start, end = [], first_row, first_row + num_rows
    while start < end:
        limit = np.interp(start, rows, num_bytes) + MAX_SHARD_BYTES
        fitting = int(np.interp(limit, num_bytes, rows)) if limit < num_bytes[-1] else end
        span = int(np.searchsorted(rows, start, "right")) - 1
        last = int(np.searchsorted(num_bytes, num_bytes[span] + MAX_SHARD_BYTES, "right")) - 1
        edge = int(rows[max(last, span + 1)])
        start = max(start + 1, min(start + shard_rows, fitting, edge, end))
        ends.append(start)
    return ends


def _cumulative_bytes(uri: str, files: Files, column: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(rows, bytes of the pictures before each), at the edges of row groups and of pages in large row groups."""
    spans = [(0, 0)]
    with files.open(uri) as file, pq.ParquetFile(file) as parquet:
        leaves = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
        leaf = next(leaf for leaf in (f"{column}.bytes", column) if leaf in leaves)
        for group in range(parquet.num_row_groups):
            of_group = parquet.metadata.row_group(group)
            chunk = of_group.column(leaves.index(leaf))
            pages = _pages(file, chunk) if chunk.total_uncompressed_size > MAX_SHARD_BYTES else []
            is_whole = sum(num_rows for num_rows, _ in pages) == of_group.num_rows
            spans += pages if is_whole else [(of_group.num_rows, chunk.total_uncompressed_size)]
    edges = np.cumsum(np.array(spans, np.float64), axis=0)
    return edges[:, 0], edges[:, 1] + np.arange(len(edges))  # strictly increasing, so that it can be inverted


def _pages(file: IO[bytes], chunk: Any) -> list[tuple[int, int]]:
    """(rows, bytes) of each data page of a column chunk; empty if the headers cannot be read."""
    starts = [chunk.data_page_offset, chunk.dictionary_page_offset]
    position = min(start for start in starts if start is not None)
    end = position + chunk.total_compressed_size
    pages = []
    try:
        while position < end:
            file.seek(position)
            header, length = _struct(file.read(_HEADER_BYTES), 0)
            data = header.get(_DATA_PAGE) or header.get(_DATA_PAGE_V2)
            if data is not None:
                pages.append((data[1], header[2]))
            if header[3] < 0:
                return []
            position += length + header[3]
    except (IndexError, KeyError, TypeError, ValueError):
        return []
    return pages


def _struct(data: bytes, position: int, depth: int = 0) -> tuple[Struct, int]:
    """A struct in Thrift's compact protocol, and the position after it. Knows only the types that page headers use.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """
    fields: Struct = {}
    number = 0
    for _ in range(_MAX_FIELDS):
        head = data[position]
        position += 1
        if head == 0:
            return fields, position
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, position = _integer(data, position)
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind == 3:
            fields[number], position = data[position], position + 1
        elif kind in (4, 5, 6):
            fields[number], position = _integer(data, position)
        elif kind == 8:
            length, position = _varint(data, position)
            position += length
        elif kind == 12 and depth < _MAX_DEPTH:
            fields[number], position = _struct(data, position, depth + 1)
        else:
            break
    raise ValueError("no page header")


def _integer(data: bytes, position: int) -> tuple[int, int]:
    """A zigzag varint."""
    value, position = _varint(data, position)
    return (value >> 1) ^ -(value & 1), position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("no varint")
