"""Balances the rows of a selection: one pass counts the rows of each entry, a second draws the rows that stay.

The full counts stay in the tasks. This process receives only totals, the most frequent entries and, if the curve is a
share, a sample of the entries.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.dataset.subset import NOT_DROPPED
from pairmill.pipeline.select.balance.counts import (
    SAMPLED_ENTRY,
    Counts,
    CountTask,
    KeptEntries,
    count,
    counts_of,
    merge,
)
from pairmill.pipeline.select.balance.curve import HEAD, Heads, Thresholds, head, language_thresholds, solve
from pairmill.pipeline.select.balance.draw import DrawTask, draw
from pairmill.pipeline.select.balance.row_entries import Entries, language_hash, language_of
from pairmill.pipeline.select.outputs import NoOutput
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.step_error import StepError
from pairmill.pipeline.select.tasks import Handle, Tasks
from pairmill.schemas.balance import CONCEPT, Balance, BalanceReport, EntryRows
from pairmill.schemas.share import Share

PARTITION_ROWS = 4_000_000
"""Rows per partition of the counts. If every row has its own entry, one task merges this many counts."""
SAMPLED_ROWS = 200_000
"""Rows in the sample from which the threshold t is computed if the curve is a share. The share of rows that stay
differs from the requested share by about the standard error of such a sample."""
SHOWN_ENTRIES = 20
KEPT_BYTES = 128
"""Estimated size of the kept entries of a row, at 12 bytes per entry."""


@dataclass(frozen=True)
class Counted:
    """Results of the first pass."""

    partitions: Sequence[Handle[Counts]]
    rows: int
    unmatched: int
    """Rows without an entry."""
    sampled_rows: int
    sampled: npt.NDArray[np.void]
    """SAMPLED_ENTRYs of the sampled rows."""
    languages: dict[int, str]
    """Hash of the language -> language."""
    entries: Sequence[Handle[KeptEntries | None]]
    """For each chunk, the entries of its rows; None if finding them again is cheap or they do not fit into memory."""


def balance_rows(selector: Selector, number: int, balance: Balance, entries: Entries) -> BalanceReport:
    """Balance the remaining rows: the next scan drops those that were not drawn. Raises StepError if the column to
    balance by is null in all rows."""
    found = _count(selector, balance, entries)
    if found.rows == found.unmatched > 0 and balance.by != CONCEPT:
        raise StepError(f"{balance.by!r} is null in all rows; use another column")
    tasks, thresholds = selector.tasks, _thresholds(selector.tasks, balance, found)
    (heads,) = tasks.map(head, [(thresholds, *found.partitions)])
    sizes = list(tasks.get(tasks.map(_size, [(each,) for each in found.partitions])))
    (of_heads,) = tasks.get(tasks.map(_head_size, [(heads,)]))
    every = np.concatenate([size[2] for size in sizes])
    shown = np.sort(every[np.lexsort((every["key"], -every["rows"].astype(np.int64)))[:SHOWN_ENTRIES]], order="key")
    matches = sum(size[1] for size in sizes)
    task = DrawTask(entries, balance, selector.balanced, tuple(shown["key"].tolist()))
    selector.balanced += 1
    return BalanceReport(
        entries=sum(size[0] for size in sizes),
        head_entries=of_heads[0],
        matches=matches,
        tail_matches=matches - of_heads[1],
        unmatched_rows=found.unmatched,
        keeps_unmatched=balance.keeps_unmatched,
        curve=thresholds.curve,
        curves={found.languages[key]: t for key, t in (thresholds.languages or {}).items() if key in found.languages},
        head=list(_draw(selector, number, task, heads, shown, found)),
    )


def _count(selector: Selector, balance: Balance, entries: Entries) -> Counted:
    selector.scan(NoOutput())  # to find out which rows remain, and how many
    remaining, tasks = selector.counts[NOT_DROPPED], selector.tasks
    share = min(1.0, SAMPLED_ROWS / max(1, remaining)) if isinstance(balance.curve, Share) else 0.0
    keeps_entries = entries.is_costly and remaining * KEPT_BYTES <= tasks.memory_bytes
    task = CountTask(entries, max(1, math.ceil(remaining / PARTITION_ROWS)), share, keeps_entries)
    calls = [(task, *each) for each in zip(selector.chunks, selector.drop_step, strict=True)]
    parts = tasks.map_split(count, calls, task.outputs)
    partitions = tasks.map(merge, [[part[index] for part in parts] for index in range(task.partitions)])
    sampled = np.concatenate([np.zeros(0, SAMPLED_ENTRY), *tasks.get([part[-4] for part in parts])])
    totals: npt.NDArray[np.int64] = sum(tasks.get([part[-3] for part in parts]), np.zeros(3, np.int64))
    languages: dict[int, str] = reduce(or_, tasks.get([part[-2] for part in parts]), {})
    return Counted(
        partitions, int(totals[0]), int(totals[1]), int(totals[2]), sampled, languages, [part[-1] for part in parts]
    )


def _thresholds(tasks: Tasks, balance: Balance, found: Counted) -> Thresholds:
    if isinstance(balance.curve, Share):
        return Thresholds(_solved(tasks, balance.curve, balance.keeps_unmatched, found))
    if not found.languages:
        return Thresholds(balance.curve)
    if balance.reference not in found.languages.values():
        raise StepError(
            f"no row has the reference language {balance.reference!r}; the languages in {balance.language} include "
            f"{', '.join(sorted(found.languages.values())[:20])}; set reference to one of them"
        )
    call = (balance.curve, language_hash(balance.reference), *found.partitions)
    (languages,) = tasks.get(tasks.map(language_thresholds, [call]))
    return Thresholds(balance.curve, languages)


def _solved(tasks: Tasks, share: Share, keeps_unmatched: bool, found: Counted) -> float:
    """The threshold t that keeps about this share of the rows. Raises StepError if the rows without an entry, which
    stay, leave no room for any other row."""
    unmatched = found.unmatched if keeps_unmatched else 0
    to_keep = share.rows_to_keep(found.rows) - unmatched
    if to_keep <= 0 < unmatched < found.rows:
        asked = f"count: {share.count}" if share.fraction is None else f"fraction: {share.fraction}"
        raise StepError(
            f"curve: {{{asked}}} leaves room for no other row than the {unmatched:,} without an entry, which stay; "
            "keep more rows, or add `unmatched: drop`"
        )
    sampled = np.sort(found.sampled, order=["row", "key"])  # the same order, however the rows are divided into chunks
    keys, inverse = np.unique(sampled["key"], return_inverse=True)
    counted = tasks.get(tasks.map(counts_of, [(keys, each) for each in found.partitions]))
    rows_of_keys = sum(counted, np.zeros(len(keys)))
    _, starts = np.unique(sampled["row"], return_index=True)
    return solve(starts, rows_of_keys[inverse], to_keep * found.sampled_rows / max(1, found.rows))


def _draw(
    selector: Selector, number: int, task: DrawTask, heads: Handle[Heads], shown: Counts, found: Counted
) -> Iterator[EntryRows]:
    """Draw rows and let the next scan drop the others. Returns the shown entries, most rows first."""
    chunks = zip(selector.chunks, selector.drop_step, found.entries, strict=True)
    calls = [(task, chunk, drop_step, heads, entries) for chunk, drop_step, entries in chunks]
    drawn, tasks = selector.tasks.map_split(draw, calls, outputs=3), selector.tasks
    selector.drop(number, [[rows] for rows, _, _ in drawn])
    kept: npt.NDArray[np.int64] = sum(tasks.get([each[1] for each in drawn]), np.zeros(len(shown), np.int64))
    names: dict[int, str] = reduce(or_, tasks.get([each[2] for each in drawn]), {})
    ordered = sorted(
        zip(shown.tolist(), kept.tolist(), language_of(shown["key"]).tolist(), strict=True),
        key=lambda each: (-each[0][1], names[each[0][0]]),
    )
    for (key, before), after, language in ordered:
        yield EntryRows(entry=names[key], language=found.languages.get(language), rows=before, kept=after)


def _size(counts: Counts) -> tuple[int, int, Counts]:
    """(number of entries, number of their rows, the entries with the most rows)."""
    most = np.lexsort((counts["key"], -counts["rows"].astype(np.int64)))[:SHOWN_ENTRIES]
    return len(counts), int(counts["rows"].sum()), counts[most]


def _head_size(heads: npt.NDArray[Any]) -> tuple[int, int]:
    """(number of heads, number of their rows)."""
    assert heads.dtype == HEAD
    return len(heads), int(heads["rows"].sum())
