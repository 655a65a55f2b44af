"""Collects perceptual hashes, merges equal ones, and sorts the distinct ones by rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pairmill.pipeline.image.pdq import MIN_QUALITY
from pairmill.pipeline.known.hash_index import hash_words, is_hash
from pairmill.pipeline.known.keys import HASH_WORDS, QUALITIES
from pairmill.pipeline.select.duplicates import DUPLICATE_GROUP, split_by_chunk
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.filters import RowIndices
from pairmill.pipeline.select.keys import RANK, fill_ranks, mix, ranks
from pairmill.pipeline.select.near_join import ALONE, MAX_ROWS, UNDECIDED
from pairmill.pipeline.select.outputs import Array
from pairmill.pipeline.select.step_error import StepError

SAMPLED_ROWS = 1 << 17


@dataclass(frozen=True)
class HashKeys:
    """Collects hashes with ranks, split by hash into `partitions` partitions.

    Collects only the partitions `first` to `last - 1`. Rows without a readable hash are left out.
    """

    by: str
    best: str | None
    partitions: int
    first: int
    last: int

    @property
    def columns(self) -> frozenset[str]:
        """The hash, its quality, and the columns of the score."""
        names = {self.by, *([QUALITIES[self.by]] if self.by in QUALITIES else [])}
        return frozenset(names) | (Expression(self.best).columns if self.best else frozenset())

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of one row: the words of its hash, its index, its state (UNDECIDED or ALONE) and, if there is a
        score, its rank."""
        rank = RANK.descr if self.best else []
        return np.dtype([("words", "<u8", (HASH_WORDS[self.by],)), ("row_index", "<i8"), ("state", "u1"), *rank])

    @property
    def dtypes(self) -> Sequence[np.dtype[Any]]:
        """One array per collected partition."""
        return [self.dtype] * (self.last - self.first)

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """The hashes of each partition."""
        words = HASH_WORDS[self.by]
        valid = is_hash(table[self.by], words)
        rows = np.zeros(int(valid.sum()), self.dtype)
        rows["words"], rows["row_index"] = hash_words(table[self.by].filter(pa.array(valid)), words), row_indices[valid]
        if self.by in QUALITIES:
            quality = table[QUALITIES[self.by]].fill_null(0).to_numpy()[valid]
            rows["state"] = np.where(quality < MIN_QUALITY, ALONE, UNDECIDED)
        if self.best:
            fill_ranks(rows, ranks(table, self.best)[valid])
        partition = mix(rows["words"][:, 0]) % np.uint64(self.partitions)
        return [rows[partition == number] for number in range(self.first, self.last)]


def merge_equal(chunk_starts: Sequence[int], *parts: Array) -> tuple[Array, ...]:
    """Returns (the best row of each hash, the DUPLICATE_GROUPs of two or more equal hashes, and for each chunk the rows
    to drop, sorted).

    The best row has the highest rank or, if ranks are equal, the lowest row index. It is ALONE if one of its equals is:
    if it could be dropped, no row equal to that one might stay.
    """
    rows = np.concatenate(parts)
    repeated = _is_repeated(rows["words"][:, 0])
    some = rows[repeated]
    some = some[np.lexsort((*_order(some), *some["words"].T))]
    same = np.zeros(len(some), np.bool_)  # whether each hash equals the one before it
    same[1:] = (some["words"][1:] == some["words"][:-1]).all(axis=1)
    firsts = np.flatnonzero(~same)
    sizes = np.diff(np.append(firsts, len(some)))
    groups = np.zeros(int((sizes > 1).sum()), DUPLICATE_GROUP)
    groups["row_index"], groups["rows"] = some["row_index"][firsts[sizes > 1]], sizes[sizes > 1]
    if len(firsts):
        some["state"][firsts] = np.where(np.logical_or.reduceat(some["state"] == ALONE, firsts), ALONE, UNDECIDED)
    best = np.concatenate([rows[~repeated], some[firsts]])
    return best, groups, *split_by_chunk(np.sort(some["row_index"][same]), chunk_starts)


def in_order(*parts: Array) -> tuple[Array | int, ...]:
    """Sort all rows, best first.

    Returns (a sample of the hashes, uint64 [rows, words]; the number of rows; and, for the sorted rows, their indices,
    int64 [rows], their states, and their hashes, uint64 [rows, words]). Raises StepError if there are too many.
    """
    if sum(map(len, parts)) >= MAX_ROWS:
        raise StepError(
            f"a dedup with a distance can compare at most {MAX_ROWS:,} distinct hashes; select fewer rows first"
        )
    row_index = _joined(parts, "row_index")
    names = parts[0].dtype.names or ()
    if "rank" in names:
        order = np.lexsort((row_index, ~_joined(parts, "low_bits"), ~_joined(parts, "rank")))
    else:
        order = np.argsort(row_index)
    row_index, states = row_index[order], _joined(parts, "state")[order]
    place = np.empty(len(order), np.uint32)
    place[order] = np.arange(len(order), dtype=np.uint32)
    del order
    words = np.empty((len(place), parts[0]["words"].shape[1]), np.uint64)
    ends = np.cumsum([len(part) for part in parts])
    for part, end in zip(parts, ends.tolist(), strict=True):
        words[place[end - len(part) : end]] = part["words"]  # avoids a copy of all parts
    sample = words[:: max(1, len(words) // SAMPLED_ROWS)]
    return sample, len(words), row_index, states, words


def _joined(parts: Sequence[Array], name: str) -> Array:
    return np.concatenate([part[name] for part in parts])


def _order(rows: Array) -> list[Array]:
    """Keys for lexsort that put the best row first; the most significant key is last."""
    ranked = [~rows["low_bits"], ~rows["rank"]] if "rank" in (rows.dtype.names or ()) else []
    return [rows["row_index"], *ranked]


def _is_repeated(values: Array) -> Array:
    ordered = np.sort(values)
    repeats = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return np.isin(values, repeats) if len(repeats) else np.zeros(len(values), np.bool_)
