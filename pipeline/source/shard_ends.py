"""Cuts the rows of a Parquet file into shards, by number and by the memory that the rows take once decoded."""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.source.cursor import max_shard_bytes
from pairmill.pipeline.source.decoded_sizes import Edges, row_edges

_SMALL_SHARD_BYTES = 128 << 20
"""Shards whose rows take less on average need no closer look."""


def shard_ends(uri: str, files: Files, rows: range, shard_rows: int, row_bytes: float) -> Sequence[int]:
    """Cut these rows into shards of at most `shard_rows`. Returns the end row (exclusive) of each shard; the last shard
    gets the remainder.

    A shard is estimated to take at most half of what `RowBudget` allows: that much fits, whatever the sizes of its
    rows. In each large column, the pages that a shard touches do not exceed that either, unless the shard is within a
    single page. `row_bytes`: see `decoded_sizes.row_bytes`.
    """
    if row_bytes * shard_rows <= _SMALL_SHARD_BYTES:
        return [*range(rows.start + shard_rows, rows.stop, shard_rows), rows.stop]
    with files.open(uri) as file, pq.ParquetFile(file) as parquet:
        max_bytes = max_shard_bytes(parquet.schema_arrow) // 2
        total, columns = row_edges(file, parquet, max_bytes)
    ends, start, end = [], rows.start, rows.stop
    while start < end:
        limit = np.interp(start, total.rows, total.num_bytes) + max_bytes
        fitting = int(np.interp(limit, total.num_bytes, total.rows)) if limit < total.num_bytes[-1] else end
        page_ends = (_page_end(column, start, max_bytes) for column in columns)
        start = max(start + 1, min(start + shard_rows, fitting, end, *page_ends))
        ends.append(start)
    return ends


def _page_end(column: Edges, start: int, max_bytes: int) -> int:
    """The last row at which the spans from that of row `start` on have at most `max_bytes`, or the end of its span."""
    span = int(np.searchsorted(column.rows, start, "right")) - 1
    last = int(np.searchsorted(column.num_bytes, column.num_bytes[span] + max_bytes, "right")) - 1
    return int(column.rows[max(last, span + 1)])
