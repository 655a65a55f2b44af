"""Mixes several datasets: decides which rows of each source stay, and how many.

All sources are selected together: their chunks, one source after the other, are treated as one dataset.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.subset import (
    NOT_DROPPED,
    DropStep,
    SubsetError,
    Weights,
    chunk_tables,
    read_shards,
    write_tables,
)
from pairmill.pipeline.select.duplicates import merge_across
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.steps.dedup import exact_duplicates
from pairmill.schemas.select_steps import Dedup
from pairmill.schemas.subset import Subset, SubsetFiles


@dataclass(frozen=True)
class SameWeight:
    """A Weigher that gives all rows the same weight."""

    weight: float
    columns: frozenset[str] = frozenset()

    def of(self, table: pa.Table) -> Weights:
        """The weight of each row, shape (rows,)."""
        return np.full(table.num_rows, self.weight, np.float32)


def drop_outside(chunk: Chunk, subset: Subset, step: int) -> DropStep:
    """Drop the rows of a chunk that are not in a subset of its dataset, and record the step number `step` for them.

    `subset`: a subset whose files contain the chunk's shards, and possibly others. Raises SubsetError if a shard has
    been rebuilt since the subset was made.
    """
    found = {each.shard: each for each in read_shards(chunk.store, subset)}
    drop_step = np.full(chunk.num_rows, step, np.int8)
    for shard, span in chunk.spans():
        selection = found.get(shard.shard)
        if selection is None:
            continue  # the shard is newer than the subset
        if selection.pairs_blake2b != shard.pairs_blake2b:
            again = pairmill_command("select", chunk.store.root, "--refresh", subset.name)
            raise SubsetError(f"shard {shard.shard:09d} was rebuilt after {subset.name!r} was made; run {again}")
        drop_step[span] = np.where(selection.drop_step == NOT_DROPPED, NOT_DROPPED, step)
    return drop_step


def drop_duplicates_across(selector: Selector, number: int, by: str, source_starts: Sequence[int]) -> None:
    """Let the next scan drop the rows that have the same value as a remaining row of an earlier source.

    Rows without a value are not duplicates. Duplicates within one source stay.
    """
    exact_duplicates(selector, number, Dedup(by=by), merge_across, [source_starts])


def count_steps(drop_step: DropStep) -> Counter[int]:
    """The number of rows per drop step. NOT_DROPPED is counted like a step."""
    steps, rows = np.unique(drop_step, return_counts=True)
    return Counter(dict(zip(steps.tolist(), rows.tolist(), strict=True)))


def most_samples(rows: Sequence[int], shares: Sequence[float]) -> int:
    """The largest number of samples for which every source can supply its share without repeating a row."""
    return min(math.floor(available / share) for available, share in zip(rows, _fractions(shares), strict=True))


def samples_of(total: int, shares: Sequence[float]) -> list[int]:
    """The number of samples of each source: its share of the total, rounded down.

    Because of the rounding, no source loses samples when the total grows, and the sum can be smaller than the total, by
    less than the number of sources.
    """
    return [math.floor(total * share) for share in _fractions(shares)]


def _fractions(shares: Sequence[float]) -> list[Fraction]:
    """The shares as exact fractions of their sum: 0.7 is 7/10, not its nearest float64."""
    exact = [Fraction(repr(share)) for share in shares]
    return [share / sum(exact) for share in exact]


def write_source_chunk(
    store: Store, chunk: Chunk, drop_step: DropStep, names: tuple[str, str], weigher: SameWeight | None
) -> SubsetFiles:
    """Write the two subset files of a chunk to a folder outside its dataset. `names`: folder and stem."""
    return write_tables(store, *chunk_tables(chunk, drop_step, weigher), *names)
