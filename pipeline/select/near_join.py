"""Finds, for each row, the best of the better-ranked rows whose hashes are within a distance of its own.

Rows are numbered by rank, best first, so the better row of a pair has the lower number. The search for a row ends after
the K best: in a million pictures that all resemble each other, each picture then costs K comparisons, not half a
million.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.select.hash_keys import MAX_SMALL, U64, Key
from pairmill.pipeline.select.near_compare import (
    Hashes,
    LargeGroups,
    Pairs,
    Places,
    Rows,
    SmallGroups,
    slots_of,
)

States = npt.NDArray[np.uint8]
"""The state of each row, one of the six below: uint8 [rows]."""
UNDECIDED, KEPT, DROPPED, ALONE, NEW, LATER = range(6)
"""ALONE: the row counts as having no near duplicates, whatever its hash. NEW: the row stays, but some rows near it may
not be dropped yet. LATER: the row is dropped, but the best row that is near it and stays is not known yet."""

MAX_ROWS = 1 << 32

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = 1 << 17
"""Rows to process at a time: their numbers fit into the cache of a core."""
_MAX_REFINEMENTS = 1


@dataclass(frozen=True)
class Question:
    """Describes which pairs to find. If an asked row and an offered row are near each other, the offered one must be
    better, unless both have the state `ask`."""

    keys: tuple[Key, ...]
    distance: int
    most: int
    """Maximum number of pairs for each asked row; those with the best rows are found."""
    ask: int = UNDECIDED
    """State of the asked rows, for which better rows are found."""
    offer: tuple[int, ...] = (UNDECIDED,)
    """States of the offered rows, among which better rows are found."""
    first: int = MAX_ROWS
    """Ask only for this many of the best rows with the state `ask`."""
    part: int = 0
    parts: int = 1
    """Compare only rows whose key falls into part `part` of `parts`."""

    def rows(self, states: States) -> Rows:
        """The asked and the offered rows."""
        asked = np.flatnonzero(states == self.ask)[: self.first].astype(np.uint32)
        if self.ask in self.offer:
            every = np.ones(len(asked), np.bool_)
            return Rows(asked, every, every)
        offered = np.flatnonzero(np.isin(states, self.offer)).astype(np.uint32)
        is_offered = np.arange(len(offered) + len(asked)) < len(offered)
        return Rows(np.concatenate([offered, asked]), ~is_offered, is_offered)


def near_pairs(question: Question, states: States, words: U64) -> Pairs:
    """The pairs that a question asks for: rows within the distance that share a key. Sorted and distinct."""
    hashes = Hashes(words, question.distance, question.most)
    found = np.zeros(0, np.uint64)
    rows = question.rows(states)
    for key in question.keys:
        chosen = _of_part(hashes, key, question, rows)
        new = [each for each in _join(hashes, key, chosen, 0) if len(each)] if len(chosen.numbers) else []
        if new:
            found = first_pairs(question.most, found, *new)
    return found


def merge_pairs(most: int, *pairs: Pairs) -> tuple[Pairs, int]:
    """(result of `first_pairs` for all the pairs, its length)."""
    merged = first_pairs(most, *pairs)
    return merged, len(merged)


def first_pairs(most: int, *pairs: Pairs) -> Pairs:
    """For each worse row, the pairs with the `most` best rows. Sorted and distinct."""
    merged = np.sort(np.concatenate([np.zeros(0, np.uint64), *pairs]))
    merged = merged[np.flatnonzero(np.concatenate([[True], merged[1:] != merged[:-1]])[: len(merged)])]
    if len(merged) <= most:
        return merged
    keep = np.ones(len(merged), np.bool_)
    worse = merged >> _HALF
    keep[most:] = worse[most:] != worse[:-most]
    return merged[keep]


def _of_part(hashes: Hashes, key: Key, question: Question, rows: Rows) -> Rows:
    """The rows of the question's part. If few rows are asked or few are offered, rows that share no key with one of
    these few are mostly left out."""
    few, many = sorted((rows.asked, rows.offered), key=np.count_nonzero)
    is_few = np.count_nonzero(many) > 8 * np.count_nonzero(few)
    if question.parts == 1 and not is_few:
        return rows
    values = key.values(hashes.words[:, key.word][rows.numbers])
    chosen = (values * np.uint64(question.parts)) >> _HALF == question.part
    if is_few:
        wanted = np.zeros(1 << 20, np.bool_)
        wanted[values[few] & np.uint64(0xFFFFF)] = True
        chosen &= wanted[values & np.uint64(0xFFFFF)]
    return rows.at(chosen)


def _join(hashes: Hashes, key: Key, rows: Rows, depth: int) -> Iterator[Pairs]:
    """Compare the rows that share the key."""
    members, sizes = _groups(key.values(hashes.words[:, key.word][rows.numbers]))
    is_small = sizes <= MAX_SMALL
    small = members if is_small.all() else members[np.repeat(is_small, sizes)]
    for found in SmallGroups(rows, small, sizes[is_small]).pairs(hashes, key):
        yield first_pairs(hashes.most, found)
    if not is_small.all():
        large = members[np.repeat(~is_small, sizes)]
        yield from _join_large(hashes, key, rows.at(large), sizes[~is_small], depth)


def _join_large(hashes: Hashes, key: Key, rows: Rows, sizes: Places, depth: int) -> Iterator[Pairs]:
    """Compare the rows of large groups. Rows that would take long are compared only with rows that share more bits.

    `rows`: group after group.
    """
    starts, ends = np.repeat(np.cumsum(sizes) - sizes, sizes), np.arange(len(rows.numbers))
    if not rows.offered.all():
        offered = np.add.reduceat(rows.offered, np.cumsum(sizes) - sizes, dtype=int)
        ends = np.minimum(ends, starts + np.repeat(offered, sizes))
    groups = LargeGroups(rows.numbers, starts, ends, slots_of(key, hashes.of(rows.numbers)))
    finer = key.refined() if key.bits and depth < _MAX_REFINEMENTS else ()
    left: list[Places] = []
    for first in range(0, len(ends), _BLOCK):
        at = np.arange(first, min(first + _BLOCK, len(ends)))
        yield from groups.compare(hashes, key, at[rows.asked[at]], left if finer else None)
    if any(map(len, left)):
        again = np.concatenate(left)
        is_long, asked = np.zeros(len(ends), np.bool_), np.zeros(len(ends), np.bool_)
        is_long[starts[again]] = asked[again] = True
        is_long = is_long[starts]
        some = Rows(rows.numbers, asked, rows.offered).at(is_long)
        some = some.at(np.lexsort((some.numbers, ~some.offered)))
        for each in finer:
            yield from _join(hashes, each, some, depth + 1)


def _groups(values: U64) -> tuple[Places, Places]:
    """(positions of the values that occur more than once, group after group, ascending within each group; sizes of the
    groups). `values`: below 2^32; the array is overwritten."""
    is_first = np.ones(len(values) + 1, np.bool_)
    blocks = [(start, min(start + _BLOCK, len(values))) for start in range(0, len(values), _BLOCK)]
    values <<= _HALF
    for start, end in blocks:  # an array of all positions would take as much memory as the values
        values[start:end] |= np.arange(start, end, dtype=np.uint64)
    values.sort()
    for start, end in blocks:
        start = max(start, 1)
        is_first[start:end] = values[start:end] ^ values[start - 1 : end - 1] > _LOW
    sizes = np.diff(np.flatnonzero(is_first))
    values &= _LOW
    return values.view(np.int64)[np.repeat(sizes > 1, sizes)], sizes[sizes > 1]
