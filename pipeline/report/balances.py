"""Shows what the steps `balance` of a subset did to the most frequent entries."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pairmill.pipeline.common.text import counted
from pairmill.schemas.balance import BalanceReport
from pairmill.schemas.subset import Subset


@dataclass(frozen=True)
class EntryRow:
    """An entry and what happened to its rows."""

    name: str
    rows: int
    kept: int
    kept_share: float
    """Its rows after the step, as a share of the rows that the most frequent entry had before it."""
    dropped_share: float
    """Its dropped rows, as a share of the same number."""


@dataclass(frozen=True)
class BalanceTable:
    """The most frequent entries of one step."""

    title: str
    about: str
    rows: Sequence[EntryRow]


def balance_tables(subset: Subset) -> Iterator[BalanceTable]:
    """One table per step."""
    for report in subset.reports:
        if report.balance and report.balance.head:
            yield BalanceTable(report.step, _about(report.balance), list(_rows(report.balance)))


def _rows(found: BalanceReport) -> Iterator[EntryRow]:
    most = max(each.rows for each in found.head)
    for each in found.head:
        name = f"{each.entry} ({each.language})" if each.language else each.entry
        yield EntryRow(name, each.rows, each.kept, each.kept / most, (each.rows - each.kept) / most)


def _about(found: BalanceReport) -> str:
    tail = found.tail_matches / max(1, found.matches)
    fate = "kept" if found.keeps_unmatched else "dropped"
    unmatched = f"{counted(found.unmatched_rows, 'row')} without an entry: {fate}."
    entries = counted(found.entries, "entry") + (", counted once per language" if found.curves else "")
    return (
        f"{entries}; {found.head_entries:,} with more rows than the threshold {found.threshold_text}. "
        f"The others, with {tail:.1%} of all matches, keep all their rows. {unmatched}"
    )
