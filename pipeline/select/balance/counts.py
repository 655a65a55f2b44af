"""Counts the rows of each entry, chunk by chunk, and merges the counts of all chunks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.subset import DropStep
from pairmill.pipeline.select.balance.row_entries import ConceptEntries, Entries, RowEntries
from pairmill.pipeline.select.keys import CURVE, U64, mix, uid_hashes
from pairmill.pipeline.select.scan import remaining_rows
from pairmill.pipeline.select.sums import add_up

ENTRY_COUNT = np.dtype([("key", "<u8"), ("rows", "<u8")])
SAMPLED_ENTRY = np.dtype([("row", "<u8"), ("key", "<u8")])
"""An entry of a sampled row. `row`: a hash of the row's uid. `key`: the entry."""

Counts = npt.NDArray[np.void]
"""An array of ENTRY_COUNTs with distinct keys in ascending order; shape (entries,)."""

_MAX_PENDING = 4_000_000
"""Maximum number of entries to collect before they are counted."""


@dataclass(frozen=True)
class CountTask:
    """Describes how to count the entries of the remaining rows of a chunk. Picklable."""

    entries: Entries
    partitions: int
    sampled_share: float
    """Share of the rows whose entries are also returned one by one, in [0, 1]."""
    keeps_entries: bool
    """Whether to return the entries of all rows."""

    @property
    def outputs(self) -> int:
        """Number of values that `count` returns."""
        return self.partitions + 4


@dataclass(frozen=True)
class KeptEntries:
    """The entries of the remaining rows of a chunk, one RowEntries per shard that has such rows."""

    shards: Sequence[RowEntries]


def count(task: CountTask, chunk: Chunk, drop_step: DropStep) -> tuple[Any, ...]:
    """Count the entries of the rows of a chunk that no step has dropped.

    Returns (Counts of each partition .., SAMPLED_ENTRYs, [rows, rows without an entry, sampled rows], names of the
    languages by their hashes, KeptEntries or None).
    """
    merged, pending, num_pending, kept = np.zeros(0, ENTRY_COUNT), list[U64](), 0, list[RowEntries]()
    sampled, totals, languages = [np.zeros(0, SAMPLED_ENTRY)], np.zeros(3, np.int64), dict[int, str]()
    columns = task.entries.columns | {"uid"} if task.sampled_share else task.entries.columns
    for table, _ in remaining_rows(chunk, drop_step, columns):
        rows, keys = task.entries.of(table)
        kept += [RowEntries(rows.astype(np.int32), keys)] if task.keeps_entries else []
        pending.append(keys)
        num_pending += len(keys)
        if num_pending > _MAX_PENDING:
            merged, pending, num_pending = _counted(merged, pending), [], 0
        totals[:2] += table.num_rows, int((np.bincount(rows, minlength=table.num_rows) == 0).sum())
        if isinstance(task.entries, ConceptEntries):
            languages |= task.entries.languages(table)
        if task.sampled_share:
            hashes = uid_hashes(table["uid"], CURVE, 0)
            is_sampled = _below(hashes, task.sampled_share)
            totals[2] += int(is_sampled.sum())
            part = np.zeros(int(is_sampled[rows].sum()), SAMPLED_ENTRY)
            part["row"], part["key"] = hashes[rows][is_sampled[rows]], keys[is_sampled[rows]]
            sampled.append(part)
    merged = _counted(merged, pending)
    partition = mix(merged["key"]) % np.uint64(task.partitions)
    parts = [merged[partition == number] for number in range(task.partitions)]
    return (*parts, np.concatenate(sampled), totals, languages, KeptEntries(kept) if task.keeps_entries else None)


def merge(*parts: Counts) -> Counts:
    """Add up the counts of each entry."""
    return add_up(ENTRY_COUNT, parts)


def counts_of(keys: U64, *partitions: Counts) -> npt.NDArray[np.float64]:
    """The number of rows with each key; shape (keys,)."""
    found = np.zeros(len(keys))
    for counts in partitions:
        at = np.searchsorted(counts["key"], keys)
        is_there = at < len(counts)
        is_there[is_there] = counts["key"][at[is_there]] == keys[is_there]
        found[is_there] = counts["rows"][at[is_there]]
    return found


def _counted(merged: Counts, pending: list[U64]) -> Counts:
    keys, rows = np.unique(np.concatenate([np.zeros(0, np.uint64), *pending]), return_counts=True)
    added = np.zeros(len(keys), ENTRY_COUNT)
    added["key"], added["rows"] = keys, rows
    return merge(merged, added)


def _below(hashes: U64, share: float) -> npt.NDArray[np.bool_]:
    """A mask that is true for about this share of the hashes."""
    return hashes >> np.uint64(11) < np.uint64(min(share, 1.0) * (1 << 53))
