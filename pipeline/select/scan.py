"""Makes one pass over a chunk: applies filters and collects the data that the next step needs about the remaining rows.

`peek` does the same for some of the shards and leaves the state unchanged.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.dataset.chunks import Chunk, ShardFiles
from pairmill.pipeline.dataset.subset import NOT_DROPPED, DropStep
from pairmill.pipeline.select.filters import AtLeast, Filter, NotDuplicate, RowIndices
from pairmill.pipeline.select.outputs import ScanOutput

MAX_STEPS = 100
"""Maximum number of steps. Step numbers are stored as int8."""

BATCH_ROWS = 32_768
"""Number of rows that filters and outputs get at a time. If they got one shard of 4,096 rows at a time, the overhead of
the calls would take a sixth of the time."""


def scan(
    chunk: Chunk,
    drop_step: DropStep | None,
    filters: Sequence[Filter],
    output: ScanOutput,
    *duplicates: RowIndices,
) -> tuple[Any, ...]:
    """Apply the filters to all shards of a chunk. Returns (drop_step, rows per drop step, arrays of the output ..).

    `drop_step`: None if no row has been dropped yet. `duplicates`: the rows of this chunk that the NotDuplicate filter
    drops, in any number of arrays. The counts are a dict from a step's number, or NOT_DROPPED, to the number of rows.
    """
    drop_step = np.full(chunk.num_rows, NOT_DROPPED, np.int8) if drop_step is None else drop_step.copy()
    arrays = _collect(chunk, list(chunk.spans()), drop_step, filters, output, duplicates)
    return (drop_step, _counts(drop_step), *arrays)


def peek(
    chunk: Chunk,
    drop_step: DropStep | None,
    filters: Sequence[Filter],
    output: ScanOutput,
    every: int,
    *duplicates: RowIndices,
) -> tuple[Any, ...]:
    """Like `scan`, but only for the shards whose number is a multiple of `every`.

    Returns (number of rows of these shards, number of those that remain, arrays of the output ..).
    """
    drop_step = np.full(chunk.num_rows, NOT_DROPPED, np.int8) if drop_step is None else drop_step.copy()
    spans = [(shard, span) for shard, span in chunk.spans() if shard.shard % every == 0]
    arrays = _collect(chunk, spans, drop_step, filters, output, duplicates)
    seen = np.concatenate([np.zeros(0, np.int8), *(drop_step[span] for _, span in spans)])
    return (len(seen), int((seen == NOT_DROPPED).sum()), *arrays)


def remaining_rows(chunk: Chunk, drop_step: DropStep, columns: frozenset[str]) -> Iterator[tuple[pa.Table, RowIndices]]:
    """The rows that no step has dropped, and their indices in the whole dataset, for each shard that has any."""
    for shard, span in chunk.spans():
        remaining = drop_step[span] == NOT_DROPPED
        if remaining.any():
            table = chunk.read(shard, columns)
            table = table if remaining.all() else table.filter(pa.array(remaining))
            yield table, np.flatnonzero(remaining) + span.start + chunk.first_row_index


def _collect(
    chunk: Chunk,
    spans: Sequence[tuple[ShardFiles, slice]],
    drop_step: DropStep,
    filters: Sequence[Filter],
    output: ScanOutput,
    duplicates: Sequence[RowIndices],
) -> Iterator[npt.NDArray[Any]]:
    """Apply the filters to some shards of a chunk, and update `drop_step` in place. Returns the output's arrays."""
    filters = [
        each.of_chunk(chunk, duplicates) if isinstance(each, AtLeast | NotDuplicate) else each for each in filters
    ]
    columns = output.columns.union(*(each.columns for each in filters))
    parts = [[np.zeros(0, dtype)] for dtype in output.dtypes]
    for batch in _batches(spans, drop_step):
        table = pa.concat_tables(chunk.read(shard, columns) for shard, _ in batch)
        rows = np.concatenate([np.arange(span.start, span.stop) for _, span in batch])
        of_batch, row_indices = drop_step[rows], rows + chunk.first_row_index
        for each in filters:
            of_batch[(of_batch == NOT_DROPPED) & ~each.keep(table, row_indices)] = each.step
        drop_step[rows] = of_batch
        if parts:
            remaining = of_batch == NOT_DROPPED
            arrays = output.collect(table.filter(pa.array(remaining)), row_indices[remaining])
            for part, array in zip(parts, arrays, strict=True):
                part.append(array)
    return map(np.concatenate, parts)


def _batches(
    spans: Sequence[tuple[ShardFiles, slice]], drop_step: DropStep
) -> Iterator[list[tuple[ShardFiles, slice]]]:
    """Groups of shards with about BATCH_ROWS rows. Leaves out shards without remaining rows."""
    batch: list[tuple[ShardFiles, slice]] = []
    num_rows = 0
    for shard, span in spans:
        if (drop_step[span] == NOT_DROPPED).any():
            batch.append((shard, span))
            num_rows += shard.num_rows
        if num_rows >= BATCH_ROWS:
            yield batch
            batch, num_rows = [], 0
    if batch:
        yield batch


def _counts(drop_step: DropStep) -> dict[int, int]:
    rows = np.bincount(drop_step - NOT_DROPPED)
    return {int(step) + NOT_DROPPED: int(rows[step]) for step in np.flatnonzero(rows)}
