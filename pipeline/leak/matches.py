"""Collects the matches of rows with evaluation pictures in a scan, and merges the matches of all shards.

For each evaluation picture and way, only the number of rows and the nearest row are kept, so there are at most 10
matches per picture and chunk, whatever the size of the dataset. Among rows at the same distance, the one with the
lowest uid counts as nearest, so the result does not depend on the size or order of the shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.known.keys import columns_of
from pairmill.pipeline.leak.shared_entries import SharedEntries
from pairmill.pipeline.select.filters import RowIndices

MATCH = np.dtype(
    [("item", "<i8"), ("way", "i1"), ("rows", "<i8"), ("near", "<f8"), ("uid", "S32"), ("row_index", "<i8")]
)
"""An evaluation picture found in one way: the number of rows that it was found in, and the nearest row."""
Matches = npt.NDArray[np.void]
_MATCHES_AT_ONCE = 1 << 20
"""Number of a shard's matches that are gathered before they are reduced to one per picture, way and row: 70 MB."""


@dataclass(frozen=True)
class LeakScan:
    """Looks up all remaining rows among the entries. Its scan output is (row index of each row found, the first way
    that found it, the matches)."""

    entries: SharedEntries
    dtypes: Sequence[np.dtype[Any]] = (np.dtype(np.int64), np.dtype(np.int8), MATCH)

    @property
    def columns(self) -> frozenset[str]:
        """The columns to compare, and `uid`."""
        by = self.entries.by
        return frozenset({"uid", self.entries.column}) | (frozenset() if by == "embedding" else columns_of(by))

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[npt.NDArray[Any]]:
        """The rows and matches of one shard."""
        uids = np.array(table["uid"].to_pylist() or [""], "S32")
        first_way = np.full(table.num_rows, np.iinfo(np.int8).max, np.int8)
        parts, waiting = [np.zeros(0, MATCH)], 0
        for rows, entries, near in self.entries.pairs(table):
            if not len(rows):
                continue
            np.minimum.at(first_way, rows, entries["way"])
            part = np.zeros(len(rows), MATCH)
            part["item"], part["way"], part["near"] = entries["item"], entries["way"], near
            part["uid"], part["row_index"], part["rows"] = uids[rows], row_indices[rows], 1
            parts.append(part)
            waiting += len(part)
            if waiting > _MATCHES_AT_ONCE:
                parts, waiting = [_nearest_of_each_row(np.concatenate(parts))], 0
        found = np.flatnonzero(first_way != np.iinfo(np.int8).max)
        return row_indices[found], first_way[found], merge(_nearest_of_each_row(np.concatenate(parts)))


def _nearest_of_each_row(matches: Matches) -> Matches:
    """The nearest match for each item, way and row."""
    if not len(matches):
        return matches
    ordered = matches[np.lexsort((matches["near"], matches["row_index"], matches["way"], matches["item"]))]
    return ordered[_starts(ordered, ("item", "way", "row_index"))]


def merge(matches: Matches) -> Matches:
    """One match per item and way, in that order: the numbers of rows are added up, and the nearest row is kept."""
    if not len(matches):
        return matches
    keys = (matches["row_index"], matches["uid"], matches["near"], matches["way"], matches["item"])
    ordered = matches[np.lexsort(keys)]
    starts = _starts(ordered, ("item", "way"))
    merged = ordered[starts].copy()
    merged["rows"] = np.add.reduceat(ordered["rows"], np.flatnonzero(starts))
    return merged


def _starts(ordered: Matches, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """A mask of the elements that are the first with their values in these fields."""
    starts = np.ones(len(ordered), np.bool_)
    starts[1:] = np.any([ordered[name][1:] != ordered[name][:-1] for name in names], axis=0)
    return starts
