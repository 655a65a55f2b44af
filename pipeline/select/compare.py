"""What differs between two choices, and why: each row's fate in the one against its fate in the other."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import ALIVE, read_subset, read_tables
from pairmill.schemas.subset import Subset

NOT_SEEN = -2
"""Instead of a step: the row's shard was not there."""
REWRITTEN = -3
"""Instead of a step: the row's shard has another generation, in which the uid was not chosen or is not there."""


@dataclass(frozen=True)
class Comparison:
    """`one` and `other` are choices from the same dataset, perhaps in two states of it."""

    one: Subset
    other: Subset
    both: int
    only_one: Mapping[int, int]
    """Why the other has not what the one has: number of the other's step (or NOT_SEEN, REWRITTEN) -> rows."""
    only_other: Mapping[int, int]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: reasons by their words."""
        return {
            "both": self.both,
            "only_in": {
                has.name: {_reason(step, has, lacks): rows for step, rows in reasons.items()}
                for has, lacks, reasons in self._sides()
            },
        }

    def _sides(self) -> list[tuple[Subset, Subset, Mapping[int, int]]]:
        return [(self.one, self.other, self.only_one), (self.other, self.one, self.only_other)]

    def lines(self) -> Iterator[str]:
        """For people."""
        for each in (self.one, self.other):
            yield f"{each.name}: {each.rows_out:,} of {each.rows_in:,} rows in {each.shards:,} shards"
        yield f"in both: {self.both:,}"
        for has, lacks, reasons in self._sides():
            yield f"only in {has.name}: {sum(reasons.values()):,}"
            for step, rows in sorted(reasons.items(), key=lambda reason: -reason[1]):
                yield f"  {rows:>12,}  {_reason(step, has, lacks)}"


@dataclass
class _Tally:
    both: int = 0
    only_one: Counter[int] = field(default_factory=Counter)
    only_other: Counter[int] = field(default_factory=Counter)


def compare(store: Store, one_name: str, other_name: str) -> Comparison:
    """Raises SubsetError where one is missing. Memory is bounded by a stretch of shards and by what was rewritten."""
    one, other = read_subset(store, one_name), read_subset(store, other_name)
    tally, rewritten = _Tally(), []
    others = _by_shard(store, other)
    waiting = next(others, None)
    for shard in _by_shard(store, one):
        while waiting and waiting["shard"] < shard["shard"]:
            tally.only_other[NOT_SEEN] += waiting["chosen"]
            waiting = next(others, None)
        if not waiting or waiting["shard"] > shard["shard"]:
            tally.only_one[NOT_SEEN] += shard["chosen"]
            continue
        if shard["pairs_blake2b"] == waiting["pairs_blake2b"]:
            _count(tally, shard["fates"], waiting["fates"])
        else:
            rewritten.append(shard["shard"])
        waiting = next(others, None)
    while waiting:
        tally.only_other[NOT_SEEN] += waiting["chosen"]
        waiting = next(others, None)
    if rewritten:
        _count_by_uid(tally, _uids(store, one, rewritten), _uids(store, other, rewritten))
    return Comparison(one, other, tally.both, dict(tally.only_one), dict(tally.only_other))


def _by_shard(store: Store, selection: Subset) -> Iterator[dict[str, Any]]:
    for table in read_tables(store, selection, "shards"):
        yield from table.to_pylist()


def _count(tally: _Tally, one: bytes, other: bytes) -> None:
    mine, theirs = np.frombuffer(one, np.int8), np.frombuffer(other, np.int8)
    tally.both += int(((mine == ALIVE) & (theirs == ALIVE)).sum())
    tally.only_one.update(theirs[(mine == ALIVE) & (theirs != ALIVE)].tolist())
    tally.only_other.update(mine[(theirs == ALIVE) & (mine != ALIVE)].tolist())


def _count_by_uid(tally: _Tally, one: set[str], other: set[str]) -> None:
    tally.both += len(one & other)
    for reasons, rows in ((tally.only_one, one - other), (tally.only_other, other - one)):
        if rows:
            reasons[REWRITTEN] += len(rows)


def _uids(store: Store, selection: Subset, shards: list[int]) -> set[str]:
    found: set[str] = set()
    for table in read_tables(store, selection, "rows"):
        found.update(table.filter(pc.is_in(table["shard"], value_set=pa.array(shards, pa.int64())))["uid"].to_pylist())
    return found


def _reason(step: int, has: Subset, lacks: Subset) -> str:
    if step == NOT_SEEN:
        return f"in shards that {lacks.name} has not seen"
    if step == REWRITTEN:
        return f"in shards that were rewritten between {has.name} and {lacks.name}"
    report = lacks.reports[step]
    moved = ""
    if report.threshold is not None:
        same = [
            each.threshold
            for each in has.reports[step : step + 1]
            if each.step == report.step and each.threshold is not None
        ]
        moved = f" (threshold {report.threshold:.6g}" + "".join(f", {value:.6g} in {has.name}" for value in same) + ")"
    return f"dropped in {lacks.name} by {report.step}{moved}"
