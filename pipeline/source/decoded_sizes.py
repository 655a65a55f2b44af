"""Estimates how many bytes the rows of a Parquet file take once decoded, reading as little of the file as possible.

The footer has the encoded size of each column of a row group, and a page header that of its page. These are close to
the decoded sizes, except in a dictionary-encoded column, which stores repeated values, such as pictures with several
questions each, only once. There, the dictionary and the pages with its indices are read.
"""

import math
import struct
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.source.page_levels import entry_lengths, value_lengths
from pairmill.pipeline.source.pages import Page, pages_of

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
_DICTIONARY_ENCODINGS = (2, 8)
_MAX_ROWS = 1_000_000  # of a shard
_IGNORED_BYTES = 128 << 20  # of a shard
_LONG_VALUE = 4_096
_CUT_LENGTHS = {*range(61, 65), *range(253, 257)}
"""Bytes of a column's smallest and largest value in the footer. Arrow leaves out long values; the writers of Polars and
DuckDB cut them to 64 and 256 bytes, or less at the boundary of a character."""
_MAX_BYTES, _MAX_UNPACKED_BYTES, _MAX_RATIO = 256 << 20, 16 << 20, 20
"""Dictionaries beyond the first limit, or beyond the second and so many times their size in the file, are not read."""
_BLOCK_ROWS = 16

Spans = list[tuple[int, float]]
"""(rows, bytes) of consecutive parts of a column."""


@dataclass(frozen=True, slots=True)
class Edges:
    """Row numbers, and the bytes before each of these rows, both strictly increasing."""

    rows: npt.NDArray[np.float64]
    num_bytes: npt.NDArray[np.float64]

    @classmethod
    def of(cls, spans: Spans) -> "Edges":
        """The edges between spans, from row 0 on."""
        edges = np.cumsum(np.array([(0, 0), *spans], np.float64), axis=0)
        rows, num_bytes = edges[np.r_[True, np.diff(edges[:, 0]) > 0]].T
        return cls(rows, num_bytes + np.arange(len(rows)))


def row_bytes(metadata: pq.FileMetaData) -> float:
    """Bytes of an average row in the row group where these are highest, from the footer alone. Infinity if repeated
    values may make rows so large that it matters."""
    highest = 0.0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        leaves = range(group.num_columns)
        if any(_may_repeat(group.column(leaf), _IGNORED_BYTES) for leaf in leaves):
            return math.inf
        num_bytes = sum(_footer_bytes(group.column(leaf), metadata.schema.column(leaf)) for leaf in leaves)
        highest = max(highest, num_bytes / max(group.num_rows, 1))
    return highest


def row_edges(file: IO[bytes], parquet: pq.ParquetFile, max_bytes: int) -> tuple[Edges, list[Edges]]:
    """The edges of rows in the whole file, and those of each column with spans that are smaller than row groups, which
    is a column with more than `max_bytes` in a row group, or with repeated values."""
    metadata = parquet.metadata
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    rest = np.zeros(len(groups))
    fine = []
    for leaf in range(metadata.num_columns):
        column = metadata.schema.column(leaf)
        spans = [_spans(file, group, column, leaf, max_bytes) for group in groups]
        if all(len(of_group) == 1 for of_group in spans):
            rest += [num_bytes for ((_, num_bytes),) in spans]
        else:
            fine.append(Edges.of([span for of_group in spans for span in of_group]))
    coarse = Edges.of([(group.num_rows, num_bytes) for group, num_bytes in zip(groups, rest, strict=True)])
    rows = np.unique(np.concatenate([edges.rows for edges in (coarse, *fine)]))
    total = sum(
        (np.interp(rows, edges.rows, edges.num_bytes) for edges in fine), np.interp(rows, coarse.rows, coarse.num_bytes)
    )
    return Edges(rows, total), fine


def _footer_bytes(chunk: Any, column: Any) -> int:
    if chunk.physical_type in _WIDTHS:
        return int(chunk.num_values) * _WIDTHS[chunk.physical_type]
    if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY":
        return int(chunk.num_values) * int(column.length)
    return int(chunk.total_uncompressed_size)


def _may_repeat(chunk: Any, max_bytes: int) -> bool:
    """Whether repeated long values may make the rows of a shard take more than `max_bytes`."""
    if chunk.physical_type != "BYTE_ARRAY" or not chunk.has_dictionary_page:
        return False
    if chunk.total_uncompressed_size * min(chunk.num_values, _MAX_ROWS) <= max_bytes:
        return False
    statistics = chunk.statistics
    if statistics is None or not statistics.has_min_max:
        return statistics is None or statistics.null_count != chunk.num_values
    lengths = [len(statistics.min_raw), len(statistics.max_raw)]
    return max(lengths) >= _LONG_VALUE or any(length in _CUT_LENGTHS for length in lengths)


def _spans(file: IO[bytes], group: Any, column: Any, leaf: int, max_bytes: int) -> Spans:
    chunk = group.column(leaf)
    num_bytes = _footer_bytes(chunk, column)
    whole: Spans = [(group.num_rows, num_bytes)]
    if not chunk.num_values or chunk.physical_type != "BYTE_ARRAY":
        return whole
    if not _may_repeat(chunk, max_bytes) and num_bytes <= max_bytes:
        return whole
    try:
        spans = _page_spans(file, chunk, column, max_bytes)
    except (ValueError, IndexError, struct.error, pa.ArrowException, OSError):
        return whole
    if sum(rows for rows, _ in spans) == group.num_rows:
        return spans
    # The values of a nested column are not its rows.
    return [(group.num_rows, max(num_bytes, sum(size for _, size in spans)))]


def _page_spans(file: IO[bytes], chunk: Any, column: Any, max_bytes: int) -> Spans:
    """The spans of a column whose first pages may refer to a dictionary. Writers stop using it for the remaining pages
    if it gets too large."""
    spans: Spans = []
    pages = pages_of(file, chunk)
    rest = list(islice(pages, 1))
    left = chunk.total_uncompressed_size
    if rest and not rest[0].is_data:
        dictionary, coded = rest.pop(), []
        for page in pages:
            if page.encoding not in _DICTIONARY_ENCODINGS:
                rest = [page]
                break
            coded.append(page)
        spans = _coded_spans(file, dictionary, coded, chunk, column)
        left -= sum(page.num_bytes for page in (dictionary, *coded))
    if left > max_bytes:
        return [*spans, *((page.num_values, page.num_bytes) for page in chain(rest, pages))]
    num_left = chunk.num_values - sum(rows for rows, _ in spans)
    return [*spans, (num_left, max(left, 0))] if num_left else spans


def _coded_spans(file: IO[bytes], dictionary: Page, coded: list[Page], chunk: Any, column: Any) -> Spans:
    num_coded = sum(page.num_values for page in coded)
    nulls = chunk.statistics.null_count or 0 if chunk.statistics is not None else 0
    if dictionary.num_values >= num_coded - nulls:
        return [(num_coded, dictionary.num_bytes)]  # no value is repeated
    if dictionary.num_bytes > min(_MAX_BYTES, max(_MAX_UNPACKED_BYTES, _MAX_RATIO * dictionary.packed_bytes)):
        return [(num_coded, num_coded * dictionary.num_bytes / max(dictionary.num_values, 1))]
    lengths = entry_lengths(file, dictionary, chunk.compression)
    max_levels = column.max_repetition_level, column.max_definition_level
    spans: Spans = []
    for page in coded:
        sizes = value_lengths(file, page, chunk.compression, max_levels, lengths)
        starts = np.arange(0, len(sizes), _BLOCK_ROWS)
        rows = np.diff(np.append(starts, len(sizes)))
        spans += zip(rows.tolist(), np.add.reduceat(sizes, starts).tolist(), strict=True)
    return spans
