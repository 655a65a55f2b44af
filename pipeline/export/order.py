"""The order in which rows are exported: groups of shards in random order, and within a group all of its rows mixed.

A file is a stretch of that order: it is read from the few shards of a group, not from all, and can be written by
itself, anywhere, again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pairmill.pipeline.select.keys import mixed

GROUP_SHARDS = 32
"""Neighbours in the export come from so many shards; the trainer's own shuffle buffer does the rest."""


@dataclass(frozen=True, slots=True)
class Member:
    """One shard with chosen rows."""

    shard: int
    generation: int
    pairs_blake2b: str
    rows: int
    fates: str
    """The file of the choice that has its rows' fates."""


@dataclass(frozen=True, slots=True)
class Group:
    """Shards whose rows are mixed."""

    members: tuple[Member, ...]
    first_rank: int

    @property
    def rows(self) -> int:
        """Chosen ones."""
        return sum(member.rows for member in self.members)


def grouped(members: Sequence[Member], seed: int | None) -> list[Group]:
    """All members in groups. Without a seed each shard is its own, in the dataset's order."""
    size = 1 if seed is None else GROUP_SHARDS
    if seed is not None:
        numbers = np.array([member.shard for member in members], np.uint64)
        salt = mixed(np.array([seed % (1 << 64)], np.uint64))[0]
        members = [members[index] for index in np.argsort(mixed(numbers ^ salt), kind="stable")]
    groups: list[Group] = []
    for start in range(0, len(members), size):
        rank = groups[-1].first_rank + groups[-1].rows if groups else 0
        groups.append(Group(tuple(members[start : start + size]), rank))
    return groups


def stretches(groups: Sequence[Group], rows_per_file: int) -> Iterator[list[tuple[Group, int, int]]]:
    """Per file, (group, first, last) of the ranks within the groups that it takes."""
    total = groups[-1].first_rank + groups[-1].rows if groups else 0
    index = 0
    for start in range(0, total, rows_per_file):
        end = min(start + rows_per_file, total)
        parts = []
        while groups[index].first_rank + groups[index].rows <= start:
            index += 1
        for group in groups[index:]:
            if group.first_rank >= end:
                break
            parts.append((group, max(start - group.first_rank, 0), min(end - group.first_rank, group.rows)))
        yield parts
