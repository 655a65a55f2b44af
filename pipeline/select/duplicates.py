"""Finds exact duplicates in one partition of the keys. The best row of each group stays; the others are dropped."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.select.filters import RowIndices
from pairmill.pipeline.select.outputs import Array

MAX_REPORTED_GROUPS = 5

DUPLICATE_GROUP = np.dtype([("row_index", "<i8"), ("rows", "<i8")])
"""The row that stays, and the size of its group."""


def merge_duplicates(chunk_starts: Sequence[int], *parts: Array) -> tuple[Array, ...]:
    """Returns the groups of two or more rows with equal keys, and for each chunk the rows to drop, sorted.

    The best row of a group has the highest rank or, if ranks are equal, the lowest row index.
    """
    keys, same = _grouped(parts)
    firsts = np.flatnonzero(~same)
    sizes = np.diff(np.append(firsts, len(keys)))
    groups = np.zeros(int((sizes > 1).sum()), DUPLICATE_GROUP)
    groups["row_index"], groups["rows"] = keys["row_index"][firsts[sizes > 1]], sizes[sizes > 1]
    return groups, *split_by_chunk(np.sort(keys["row_index"][same]), chunk_starts)


def merge_across(source_starts: Sequence[int], chunk_starts: Sequence[int], *parts: Array) -> tuple[Array, ...]:
    """Like `merge_duplicates`, but only drops a row if a row of an earlier source has the same key.

    source_starts: index of the first row of each source. The keys must have no ranks.
    """
    keys, same = _grouped(parts)
    source = np.searchsorted(np.asarray(source_starts, np.int64), keys["row_index"], "right")
    firsts = np.flatnonzero(~same)
    is_dropped = source != source[firsts[np.cumsum(~same) - 1]]
    dropped = np.add.reduceat(is_dropped, firsts, dtype=np.int64) if len(firsts) else np.zeros(0, np.int64)
    groups = np.zeros(int((dropped > 0).sum()), DUPLICATE_GROUP)
    groups["row_index"], groups["rows"] = keys["row_index"][firsts[dropped > 0]], 1 + dropped[dropped > 0]
    return groups, *split_by_chunk(np.sort(keys["row_index"][is_dropped]), chunk_starts)


def _grouped(parts: Sequence[Array]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """(keys that may have duplicates, grouped by value with the best first; whether each equals the previous one)."""
    # a row whose high half is unique has no duplicate
    is_repeated = _is_repeated(np.concatenate([part["high"] for part in parts]))
    bounds = np.cumsum([len(part) for part in parts])[:-1]
    keys = np.concatenate([part[mask] for part, mask in zip(parts, np.split(is_repeated, bounds), strict=True)])
    keys = keys[np.lexsort((keys["row_index"], ~keys["low_bits"], ~keys["rank"], keys["low"], keys["high"]))]
    same = np.zeros(len(keys), np.bool_)
    same[1:] = (keys["high"][1:] == keys["high"][:-1]) & (keys["low"][1:] == keys["low"][:-1])
    return keys, same


def split_by_chunk(row_indices: RowIndices, chunk_starts: Sequence[int]) -> list[RowIndices]:
    """Split sorted row indices into one array per chunk."""
    return np.split(row_indices, np.searchsorted(row_indices, np.asarray(chunk_starts[1:], np.int64)))


def largest(groups: Array) -> Array:
    """The MAX_REPORTED_GROUPS groups with the most rows; ties go to the lowest row index."""
    return groups[np.lexsort((groups["row_index"], -groups["rows"]))[:MAX_REPORTED_GROUPS]]


def _is_repeated(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """For each value, whether it occurs more than once."""
    ordered = np.sort(values)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return np.zeros(len(values), np.bool_)
    nearest: npt.NDArray[np.uint64] = repeated.take(np.searchsorted(repeated, values), mode="clip")
    return np.equal(nearest, values)
