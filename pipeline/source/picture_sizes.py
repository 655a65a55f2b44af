"""Estimates the size of the pictures in a Parquet file from its metadata alone, without reading them.

The footer records the size of each row group, and a page header the size of its page. Page headers are read only for
row groups that exceed the limit for a shard, so a file of ordinary size costs a few hundred bytes.
"""

from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.source.pages import pages_of

MAX_SHARD_BYTES = 1 << 30
"""Maximum total bytes of the pictures in a planned shard. Several workers keep a shard in memory."""


def shard_ends(uri: str, files: Files, column: str, first_row: int, num_rows: int, shard_rows: int) -> list[int]:
    """Cut `num_rows` rows, starting at `first_row`, into shards of at most `shard_rows`. Returns the end row
    (exclusive) of each shard.

    A shard has at most MAX_SHARD_BYTES, as estimated from the average row of each page. The pages that a shard touches
    do not exceed that total either, unless the shard is within a single page.
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
    """Row numbers, and the bytes of the pictures before each of these rows. The rows are the boundaries of row groups
    and, in large row groups, of pages."""
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
    try:
        return [(page.num_values, page.num_bytes) for page in pages_of(file, chunk) if page.is_data]
    except ValueError:
        return []
