"""Finds, for each row, the best-ranked better rows whose hashes are within a distance of its own.

Rows have numbers in the order of their rank, the best first, so that the better row of a pair has the lower number.
Only the K best are looked for: in a million pictures that all resemble each other, each then costs K comparisons, not
half a million.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.select.hash_keys import U64, Key

Numbers = npt.NDArray[np.uint32]
"""Numbers of rows: uint32 [rows]."""
States = npt.NDArray[np.uint8]
"""What is known of each row: uint8 [rows], one of the six below."""
Places = npt.NDArray[np.int64]
"""Places in an array."""
Mask = npt.NDArray[np.bool_]
Pairs = npt.NDArray[np.uint64]
"""uint64 [pairs]: the number of the worse row in the upper half, of the better one in the lower half."""

UNDECIDED, KEPT, DROPPED, ALONE, NEW, LATER = range(6)
"""ALONE: the row has no near duplicates, whatever its hash. NEW: it is kept, and not all rows near it are dropped yet.
LATER: it is dropped, by a row that need not be the best of those that are near it and stay."""

MAX_ROWS = 1 << 32

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = 1 << 17
"""Rows that are compared at a time: their numbers fit into the cache of a core."""
_LONG = 1024
"""A row that was compared with this many rows that share its key is compared only with those that share more bits."""
_MAX_REFINEMENTS = 1


@dataclass(frozen=True)
class Hashes:
    """Hashes to compare."""

    words: tuple[U64, ...]
    """64 bits of each hash per array."""
    distance: int
    most: int
    """K: how many better rows to find for each row."""

    def is_near(self, one: Numbers, other: Numbers) -> Mask:
        """For each pair, whether it is within the distance."""
        bits = sum(np.bitwise_count(word[one] ^ word[other]).astype(np.uint16) for word in self.words)
        return np.asarray(bits <= self.distance)


@dataclass(frozen=True)
class Question:
    """Which pairs to find. Rows that are offered are better than any row that is asked for and near them."""

    keys: tuple[Key, ...]
    distance: int
    most: int
    """For each row, how many pairs with the best better rows."""
    ask: int = UNDECIDED
    """Find better rows for rows of this state,"""
    offer: tuple[int, ...] = (UNDECIDED,)
    """among the rows of these states: the same, or others."""
    first: int = MAX_ROWS
    """Only for so many of the best rows."""
    part: int = 0
    parts: int = 1
    """Only among rows whose key falls into one of `parts` parts."""

    def rows(self, states: States) -> tuple[Numbers, Mask, Mask]:
        """(numbers of the rows, first those that are offered, each from the best down; which are asked for; which are
        offered)."""
        asked = np.flatnonzero(states == self.ask)[: self.first].astype(np.uint32)
        if self.ask in self.offer:
            every = np.ones(len(asked), np.bool_)
            return asked, every, every
        offered = np.flatnonzero(np.isin(states, self.offer)).astype(np.uint32)
        is_offered = np.arange(len(offered) + len(asked)) < len(offered)
        return np.concatenate([offered, asked]), ~is_offered, is_offered


def near_pairs(question: Question, states: States, *words: U64) -> Pairs:
    """The pairs that a question asks for: within the distance, and with an equal key. Sorted, each once."""
    hashes = Hashes(words, question.distance, question.most)
    found = np.zeros(0, np.uint64)
    rows = question.rows(states)
    for key in question.keys:
        chosen = _of_part(hashes, key, question, *rows)
        if not len(chosen[0]):
            continue
        new = [each for each in _join(hashes, key, *chosen, 0) if len(each)]
        if new:
            found = first_pairs(question.most, found, *new)
    return found


def merge_pairs(most: int, *pairs: Pairs) -> tuple[Pairs, int]:
    """(`first_pairs`, how many there are)."""
    merged = first_pairs(most, *pairs)
    return merged, len(merged)


def first_pairs(most: int, *pairs: Pairs) -> Pairs:
    """Of each worse row, the pairs with the `most` best better rows; sorted, each once."""
    merged = np.sort(np.concatenate([np.zeros(0, np.uint64), *pairs]))
    merged = merged[np.flatnonzero(np.concatenate([[True], merged[1:] != merged[:-1]])[: len(merged)])]
    if len(merged) <= most:
        return merged
    keep = np.ones(len(merged), np.bool_)
    worse = merged >> _HALF
    keep[most:] = worse[most:] != worse[:-most]
    return merged[keep]


def _of_part(
    hashes: Hashes, key: Key, question: Question, rows: Numbers, asked: Mask, offered: Mask
) -> tuple[Numbers, Mask, Mask]:
    """The rows of the part, without most of those that cannot share a key with a row of the other side."""
    few, many = sorted((asked, offered), key=np.count_nonzero)
    is_few = np.count_nonzero(many) > 8 * np.count_nonzero(few)
    if question.parts == 1 and not is_few:
        return rows, asked, offered
    values = key.values(hashes.words[key.word][rows])
    chosen = (values * np.uint64(question.parts)) >> _HALF == question.part
    if is_few:
        wanted = np.zeros(1 << 20, np.bool_)
        wanted[values[few] & np.uint64(0xFFFFF)] = True
        chosen &= wanted[values & np.uint64(0xFFFFF)]
    return rows[chosen], asked[chosen], offered[chosen]


def _join(hashes: Hashes, key: Key, rows: Numbers, asked: Mask, offered: Mask, depth: int) -> Iterator[Pairs]:
    """Compare rows that share the key. Those that are offered come first, the best first."""
    members, sizes = _groups(key.values(hashes.words[key.word][rows]))
    rows, asked, offered = rows[members], asked[members], offered[members]
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    ends = np.arange(len(rows))
    if not offered.all():
        ends = np.minimum(
            ends, starts + np.repeat(np.add.reduceat(offered, np.cumsum(sizes) - sizes, dtype=int), sizes)
        )
    groups = _Groups(rows, starts, ends, _slots(hashes, key, rows))
    finer = key.refined() if key.bits and depth < _MAX_REFINEMENTS else ()
    left: list[Places] = []
    for first in range(0, len(rows), _BLOCK):
        at = np.arange(first, min(first + _BLOCK, len(rows)))
        yield from groups.compare(hashes, key, at[asked[first : first + _BLOCK]], left if finer else None)
    if any(map(len, left)):
        again = np.concatenate(left)
        is_long, asked = np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
        is_long[starts[again]] = asked[again] = True
        is_long = is_long[starts]
        order = np.argsort(members[is_long])
        rows, asked, offered = rows[is_long][order], asked[is_long][order], offered[is_long][order]
        for each in finer:
            yield from _join(hashes, each, rows, asked, offered, depth + 1)


def _groups(values: U64) -> tuple[Places, Places]:
    """(places of the values that occur more than once, group after group, in ascending order within each; sizes of the
    groups). `values`: below 2^32; they are overwritten."""
    values <<= _HALF
    values |= np.arange(len(values), dtype=np.uint64)
    values.sort()
    edges = np.flatnonzero(np.concatenate([[True], values[1:] ^ values[:-1] > _LOW, [True]]))
    sizes = np.diff(edges)
    values &= _LOW
    return values.view(np.int64)[np.repeat(sizes > 1, sizes)], sizes[sizes > 1]


def _slots(hashes: Hashes, key: Key, rows: Numbers) -> npt.NDArray[np.unsignedinteger]:
    """The bits of the key's slot, of each row: uint64 [rows], or uint32 if they are half a word."""
    slots = hashes.words[key.word][rows] & np.uint64(key.slot)
    if key.slot <= 0xFFFFFFFF:
        return slots.astype(np.uint32)
    if key.slot & 0xFFFFFFFF == 0:
        return (slots >> _HALF).astype(np.uint32)
    return slots


@dataclass(frozen=True)
class _Groups:
    """Rows in groups that share a key. Within each group they are in the order of their numbers."""

    rows: Numbers
    starts: Places
    """Where each row's group starts."""
    ends: Places
    """Where the rows end that each row is compared with."""
    slots: npt.NDArray[np.unsignedinteger]

    def compare(self, hashes: Hashes, key: Key, at: Places, left: list[Places] | None) -> Iterator[Pairs]:
        """Compare the rows at these places with the first of their group, the second, and so on, until they come to
        themselves or have found enough. `left`: if it is a list, rows that would take long are appended to it."""
        other, found, compared = self.starts[at], np.zeros(len(at), np.uint16), 0
        while True:
            stay = np.flatnonzero((other < self.ends[at]) & (found < hashes.most))
            at, other, found = at[stay], other[stay], found[stay]
            if left is not None and compared >= _LONG:
                left.append(at[found == 0])  # a row that has found some finds enough soon
                at, other, found, left = at[found > 0], other[found > 0], found[found > 0], None
            if not len(at):
                return
            order, ends = _longest_first(self.ends[at] - other)
            at, other, found = at[order], other[order], found[order]
            mine, finished = self.slots[at], 0
            for size in ends.tolist():
                near = np.flatnonzero(np.bitwise_count(self.slots[other[:size]] ^ mine[:size]) <= key.radius)
                if len(near):
                    near = self._near(hashes, key, at, other, near[found[near] < hashes.most])
                    yield (self.rows[at[near]].astype(np.uint64) << _HALF) | self.rows[other[near]]
                    found[near] += 1
                    finished += int(np.count_nonzero(found[near] == hashes.most))
                other[:size] += 1
                compared += 1
                if 2 * finished > size:
                    break

    def _near(
        self,
        hashes: Hashes,
        key: Key,
        at: Places,
        other: Places,
        near: Places,
    ) -> Places:
        """Those of the pairs of places whose whole hashes are within the distance, and not just their slots."""
        if len(hashes.words) == 1 and key.radius == hashes.distance:
            return near
        return near[hashes.is_near(self.rows[at[near]], self.rows[other[near]])]


def _longest_first(lengths: Places) -> tuple[Places, Places]:
    """(an order of the rows by how many rows they are to be compared with, the most first; for each of the next steps,
    how many rows take part)."""
    short = np.minimum(lengths, _LONG).astype(np.uint16)
    counts = np.bincount(short)
    return np.argsort(~short, kind="stable"), np.cumsum(counts[::-1])[::-1][1:]
