"""The balancing curve of MetaCLIP (https://arxiv.org/abs/2309.16671, algorithm 1), and a solver for its threshold t."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.select.balance.counts import Counts, merge
from pairmill.pipeline.select.balance.row_entries import language_of
from pairmill.pipeline.select.keys import U64
from pairmill.pipeline.select.step_error import StepError

HEAD = np.dtype([("key", "<u8"), ("rows", "<u8"), ("log_drop", "<f8")])
"""An entry with more rows than t. `log_drop`: ln(1 - p), where p is the probability that the entry keeps a row."""

Heads = npt.NDArray[np.void]
"""An array of HEADs in ascending order of their keys; shape (heads,)."""

Doubles = npt.NDArray[np.float64]

_STEPS = 60
"""Steps of the bisection. Each halves an interval of ln t."""


@dataclass(frozen=True)
class Thresholds:
    """One t for all entries, or one per language."""

    curve: float
    languages: Mapping[int, float] | None = None
    """Hash of the language -> t."""

    def of(self, keys: U64) -> Doubles:
        """The t of each key; shape (keys,)."""
        if self.languages is None:
            return np.full(len(keys), self.curve)
        known = np.array(sorted(self.languages), np.uint64)
        values = np.array([self.languages[number] for number in known.tolist()])
        return values[np.searchsorted(known, language_of(keys))]


def head(thresholds: Thresholds, *partitions: Counts) -> Heads:
    """The entries with more rows than t. All other entries keep all their rows."""
    counts = merge(*partitions)
    t = thresholds.of(counts["key"])
    is_head = counts["rows"] > t
    found = np.zeros(int(is_head.sum()), HEAD)
    found["key"], found["rows"] = counts["key"][is_head], counts["rows"][is_head]
    found["log_drop"] = np.log1p(-t[is_head] / found["rows"])
    return found


def probabilities(rows: npt.NDArray[np.int64], keys: U64, num_rows: int, heads: Heads) -> Doubles:
    """For each of `num_rows` rows, the probability 1 - prod(1 - p) that it stays; 0 for a row without an entry.

    rows, keys: the entries of the rows (RowEntries).
    """
    at = np.searchsorted(heads["key"], keys)
    is_head = at < len(heads)
    is_head[is_head] = heads["key"][at[is_head]] == keys[is_head]
    log_drop = np.full(len(keys), -np.inf)  # p = 1
    log_drop[is_head] = heads["log_drop"][at[is_head]]
    return np.asarray(-np.expm1(np.bincount(rows, log_drop, num_rows)) + 0.0)


def solve(row_starts: npt.NDArray[np.int64], counts: Doubles, rows_to_keep: float) -> float:
    """The t with which `rows_to_keep` of the rows are expected to stay.

    row_starts: index of the first entry of each row, ascending; shape (rows,). Each row has at least one entry.
    counts: the number of rows with each of these entries.
    """
    if not len(row_starts) or rows_to_keep >= len(row_starts):
        return float(counts.max(initial=1.0))
    low, high = -40.0, float(np.log(counts.max()))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):
            log_drop = np.log1p(-np.minimum(1.0, np.exp(middle) / counts))
        kept = -np.expm1(np.add.reduceat(log_drop, row_starts))
        low, high = (middle, high) if kept.sum() < rows_to_keep else (low, middle)
    return float(np.exp(high))


def language_thresholds(curve: float, reference: int, *partitions: Counts) -> dict[int, float]:
    """The t of each language, chosen so that about the same share of its matches is in the tail as in the reference
    language.

    In the reference language, entries with fewer than `curve` rows are the tail. In any other language, the tail is the
    entries with at most t rows, where t is the row count of the entry that brings the tail's share of the matches
    closest to that of the reference (MetaCLIP 2, https://arxiv.org/abs/2507.22062, section 3.2). Languages are hashes,
    as in `language_of`. Raises StepError if the reference has no matches.
    """
    counts = merge(*partitions)
    languages = language_of(counts["key"])
    of_reference = counts["rows"][languages == reference].astype(np.float64)
    if not len(of_reference):
        raise StepError("no row of the reference language has an entry; set reference to another language")
    tail = float(of_reference[of_reference < curve].sum() / of_reference.sum())
    found = {reference: curve}
    for language in np.unique(languages).tolist():
        if language != reference:
            ascending = np.sort(counts["rows"][languages == language]).astype(np.float64)
            shares = np.cumsum(ascending) / ascending.sum()
            found[language] = float(ascending[np.argmin(np.abs(shares - tail))])
    return found
