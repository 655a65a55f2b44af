"""Defines the order of an export: random groups of shards, with all rows of each group shuffled.

Any part of this order usually needs only the shards of one or two groups, so each part can be written on its own, on
any machine, and more than once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pairmill.pipeline.select.keys import mix

GROUP_SHARDS = 32
"""Number of shards in a group. The trainer's own shuffle buffer can mix the rows further."""


@dataclass(frozen=True, slots=True)
class SubsetShard:
    """A shard with selected rows."""

    shard: int
    generation: int
    pairs_blake2b: str
    num_rows: int
    """Number of selected rows."""
    path: str
    """The subset's file that lists the selected rows of this shard."""


@dataclass(frozen=True, slots=True)
class ShardGroup:
    """Shards whose rows are shuffled together."""

    shards: tuple[SubsetShard, ...]
    start: int
    """Position of the group's first row in the order."""
    source: int = 0
    """Number of the group's dataset in a mixture."""

    @property
    def num_rows(self) -> int:
        """Number of selected rows."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def end(self) -> int:
        """Position after the group's last row."""
        return self.start + self.num_rows


@dataclass(frozen=True, slots=True)
class GroupSlice:
    """The rows [start, end) of a group, in its shuffled order."""

    group: ShardGroup
    start: int
    end: int


def group_shards(shards: Sequence[SubsetShard], seed: int | None, start: int = 0, source: int = 0) -> list[ShardGroup]:
    """Divide all shards into groups, starting at position `start`. Without a seed, each shard is its own group, in
    dataset order."""
    size = 1 if seed is None else GROUP_SHARDS
    if seed is not None:
        numbers = np.array([shard.shard for shard in shards], np.uint64)
        salt = mix(np.array([seed % (1 << 64)], np.uint64))[0]
        shards = [shards[index] for index in np.argsort(mix(numbers ^ salt), kind="stable")]
    groups: list[ShardGroup] = []
    for first in range(0, len(shards), size):
        groups.append(ShardGroup(tuple(shards[first : first + size]), groups[-1].end if groups else start, source))
    return groups


def cut_into_parts(groups: Sequence[ShardGroup], rows_per_part: int) -> Iterator[list[GroupSlice]]:
    """The slices that make up each part. All parts have `rows_per_part` rows, but the last one may have fewer."""
    total = groups[-1].end if groups else 0
    yield from _cut(groups, [*range(0, total, rows_per_part), total] if total else [])


def cut_mixture(sources: Sequence[Sequence[ShardGroup]], rows_per_part: int) -> Iterator[list[GroupSlice]]:
    """The slices that make up each part of a mixture. Each part has each dataset's share of rows, to within one row. So
    the sizes of the parts differ by at most one row per dataset. No part exceeds `rows_per_part`, unless there are more
    datasets than that."""
    totals = [groups[-1].end if groups else 0 for groups in sources]
    num_parts = -(-sum(totals) // max(1, rows_per_part - len(sources) + 1))
    cuts = [[total * part // num_parts for part in range(num_parts + 1)] for total in totals]
    parts = [_cut(groups, of_source) for groups, of_source in zip(sources, cuts, strict=True)]
    for slices in zip(*parts, strict=True):
        if any(slices):  # with fewer rows per part than datasets, some parts are empty
            yield [each for of_source in slices for each in of_source]


def _cut(groups: Sequence[ShardGroup], cuts: Sequence[int]) -> Iterator[list[GroupSlice]]:
    """The slices between each pair of consecutive positions in `cuts`, which are in ascending order."""
    index = 0
    for start, end in pairwise(cuts):
        while groups[index].end <= start < end:
            index += 1
        slices = []
        for group in groups[index:]:
            if group.start >= end:
                break
            slices.append(GroupSlice(group, max(start, group.start) - group.start, min(end, group.end) - group.start))
        yield [each for each in slices if each.start < each.end]
