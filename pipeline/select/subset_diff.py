"""Compares two subsets: finds the rows that are in only one of them, and the steps that dropped them from the other."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted, pairmill_command
from pairmill.pipeline.dataset.subset import (
    NOT_DROPPED,
    DropStep,
    ShardSelection,
    SubsetError,
    current_generations,
    read_rows,
    read_shards,
    read_subset,
)
from pairmill.schemas.subset import Subset

NOT_SEEN = -2
"""Used instead of a step number if the other subset was selected without this shard."""
REBUILT = -3
"""Used instead of a step number if the other subset was selected from another generation of the shard and does not
contain the uid."""


class ComparisonDict(TypedDict):
    """JSON form of a Comparison."""

    both: int
    only_in: dict[str, dict[str, int]]
    """Name of a subset -> reason why the other subset lacks a row -> number of rows."""
    outdated: list[str]
    """Names of subsets whose shards have been rebuilt since they were selected."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of two subsets of one dataset, possibly selected at different times."""

    dataset: str
    """Path or URL of the dataset."""
    one: Subset
    other: Subset
    both: int
    only_one: Mapping[int, int]
    """Step of `other` that dropped the row (or NOT_SEEN, REBUILT) -> number of rows that only `one` has."""
    only_other: Mapping[int, int]
    """The same with `one` and `other` swapped."""
    outdated: tuple[str, ...] = ()
    """Names of the subsets whose shards have been rebuilt since; they need to be selected again."""

    def as_dict(self) -> ComparisonDict:
        """The comparison as JSON for `--json`."""
        return {
            "both": self.both,
            "only_in": {
                has.name: {_reason(step, has, lacks): rows for step, rows in reasons.items()}
                for has, lacks, reasons in self._sides()
            },
            "outdated": list(self.outdated),
        }

    def lines(self) -> Iterator[str]:
        """The comparison as text lines, main reasons first."""
        for each in (self.one, self.other):
            yield f"{each.name}: {each.rows_out:,} of {counted(each.rows_in, 'row')} in {counted(each.shards, 'shard')}"
        yield f"in both: {self.both:,}"
        digits = max((len(f"{rows:,}") for _, _, reasons in self._sides() for rows in reasons.values()), default=0)
        for has, lacks, reasons in self._sides():
            yield f"only in {has.name}: {sum(reasons.values()):,}"
            for step, rows in sorted(reasons.items(), key=lambda reason: -reason[1]):
                yield f"  {rows:>{digits},}  {_reason(step, has, lacks)}"
        for name in self.outdated:
            again = pairmill_command("select", self.dataset, "--refresh", name)
            yield f"{name}: shards were rebuilt after it was made; select again: {again}"

    def _sides(self) -> list[tuple[Subset, Subset, Mapping[int, int]]]:
        return [(self.one, self.other, self.only_one), (self.other, self.one, self.only_other)]


def compare(store: Store, one_name: str, other_name: str) -> Comparison:
    """Compare two subsets by name. Raises SubsetError if one is missing or both are the same.

    Memory use is limited to a chunk of shards and the uids of the shards that were rebuilt between the two selections.
    """
    store.check_access()
    one, other = read_subset(store, one_name), read_subset(store, other_name)
    if one_name == other_name:
        raise SubsetError(f"cannot compare {one_name!r} with itself: name two different subsets")
    tally, rebuilt = _Tally(), list[int]()
    for mine, theirs in _aligned(read_shards(store, one), read_shards(store, other)):
        if theirs is None:
            tally.only_one[NOT_SEEN] += mine.num_selected if mine else 0
        elif mine is None:
            tally.only_other[NOT_SEEN] += theirs.num_selected
        elif mine.pairs_blake2b == theirs.pairs_blake2b:
            tally.add_rows(mine.drop_step, theirs.drop_step)
        else:
            rebuilt.append(mine.shard)
    if rebuilt:
        tally.add_uids(_uids(store, one, rebuilt), _uids(store, other, rebuilt))
    outdated = tuple(subset.name for subset in (one, other) if not _is_current(store, subset))
    return Comparison(store.root, one, other, tally.both, dict(tally.only_one), dict(tally.only_other), outdated)


def _is_current(store: Store, subset: Subset) -> bool:
    try:
        current_generations(store, subset)
    except SubsetError:
        return False
    return True


def _aligned(
    one: Iterator[ShardSelection], other: Iterator[ShardSelection]
) -> Iterator[tuple[ShardSelection | None, ShardSelection | None]]:
    """Each shard's records in both subsets; None if a subset was selected without the shard."""
    mine, theirs = next(one, None), next(other, None)
    while mine or theirs:
        if theirs is None or (mine and mine.shard < theirs.shard):
            yield mine, None
            mine = next(one, None)
        elif mine is None or theirs.shard < mine.shard:
            yield None, theirs
            theirs = next(other, None)
        else:
            yield mine, theirs
            mine, theirs = next(one, None), next(other, None)


@dataclass
class _Tally:
    both: int = 0
    only_one: Counter[int] = field(default_factory=Counter)
    only_other: Counter[int] = field(default_factory=Counter)

    def add_rows(self, one: DropStep, other: DropStep) -> None:
        """Compare row by row. Both records must be of the same pairs file."""
        in_one, in_other = one == NOT_DROPPED, other == NOT_DROPPED
        self.both += int((in_one & in_other).sum())
        self.only_one.update(other[in_one & ~in_other].tolist())
        self.only_other.update(one[in_other & ~in_one].tolist())

    def add_uids(self, one: set[str], other: set[str]) -> None:
        """Compare by uid, for rows in different files."""
        self.both += len(one & other)
        for reasons, uids in ((self.only_one, one - other), (self.only_other, other - one)):
            if uids:
                reasons[REBUILT] += len(uids)


def _uids(store: Store, subset: Subset, shards: Sequence[int]) -> set[str]:
    found: set[str] = set()
    for table in read_rows(store, subset):
        found.update(table.filter(pc.is_in(table["shard"], value_set=pa.array(shards, pa.int64())))["uid"].to_pylist())
    return found


def _reason(step: int, has: Subset, lacks: Subset) -> str:
    if step == NOT_SEEN:
        return f"in shards that did not exist when {lacks.name} was selected"
    if step == REBUILT:
        return f"in shards that were rebuilt between {has.name} and {lacks.name}"
    report = lacks.reports[step]
    return f"dropped in {lacks.name} by {report.step}{_thresholds(step, has, lacks)}"


def _thresholds(step: int, has: Subset, lacks: Subset) -> str:
    """Text such as ` (threshold 0.31, 0.28 in NAME)` if the steps have thresholds."""
    report = lacks.reports[step]
    if report.threshold is None:
        return ""
    counterpart = has.reports[step] if step < len(has.reports) else None
    if counterpart is None or counterpart.step != report.step or counterpart.threshold is None:
        return f" (threshold {report.threshold:.6g})"
    return f" (threshold {report.threshold:.6g}, {counterpart.threshold:.6g} in {has.name})"
