"""Draws the rows that stay, chunk by chunk."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.subset import DropStep
from pairmill.pipeline.select.balance.counts import KeptEntries
from pairmill.pipeline.select.balance.curve import Heads, probabilities
from pairmill.pipeline.select.balance.row_entries import Entries
from pairmill.pipeline.select.keys import BALANCE, uid_hashes
from pairmill.pipeline.select.scan import remaining_rows
from pairmill.schemas.balance import Balance


@dataclass(frozen=True)
class DrawTask:
    """Describes how to draw the rows of a chunk that stay. Picklable."""

    entries: Entries
    balance: Balance
    ordinal: int
    """Number of balance steps before this one. Each step draws independently; otherwise, the rows that one step draws
    would be likelier to be drawn by the next."""
    shown: tuple[int, ...]
    """Keys of the entries whose rows are counted, ascending."""


def draw(
    task: DrawTask, chunk: Chunk, drop_step: DropStep, heads: Heads, kept_entries: KeptEntries | None
) -> tuple[Any, ...]:
    """Draw the rows of a chunk that stay.

    Returns (row indices of the rows to drop, number of rows of each shown entry that stay, names of these entries).
    """
    known = iter(kept_entries.shards) if kept_entries else None
    columns = frozenset({"uid"}) | (frozenset() if known else task.entries.columns)
    dropped, kept_rows = [np.zeros(0, np.int64)], np.zeros(len(task.shown), np.int64)
    shown, names = np.array(task.shown, np.uint64), dict[int, str]()
    for table, row_indices in remaining_rows(chunk, drop_step, columns):
        rows, keys = next(known) if known else task.entries.of(table)
        chance = probabilities(rows, keys, table.num_rows, heads)
        if task.balance.keeps_unmatched:
            chance[np.bincount(rows, minlength=table.num_rows) == 0] = 1.0
        stays = (
            uid_hashes(table["uid"], BALANCE, task.balance.seed + (task.ordinal << 32)) >> np.uint64(11)
        ) * 2.0**-53 < chance
        dropped.append(row_indices[~stays])
        kept = keys[stays[rows]]
        at = np.searchsorted(shown, kept)
        kept_rows += np.bincount(at[np.isin(kept, shown)], minlength=len(shown))
        names |= task.entries.names(table, _unknown(task.shown, names))
    return np.concatenate(dropped), kept_rows, names


def _unknown(keys: Collection[int], names: Collection[int]) -> frozenset[int]:
    return frozenset(keys) - frozenset(names)
