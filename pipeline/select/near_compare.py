"""Compares rows that share a key: in small groups, each row with all better rows; in large groups, with the best rows.

Small groups are compared together, in few array operations on contiguous numbers. In a large group, all rows can be
near each other, so the comparisons of a row end once it has found enough better rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.select.hash_keys import U64, Key

Numbers = npt.NDArray[np.uint32]
"""Row numbers: uint32 [rows]."""
Places = npt.NDArray[np.int64]
"""Positions in an array."""
Mask = npt.NDArray[np.bool_]
Pairs = npt.NDArray[np.uint64]
"""uint64 [pairs]: the number of the worse row in the upper half, that of the better row in the lower half."""
Counts = npt.NDArray[np.uint16]
"""Bit counts."""
Slots = npt.NDArray[np.unsignedinteger]
"""For each row, the bits of a key's slot: uint64 [rows], or uint32 if the slot is at most half a word."""

_HALF = np.uint64(32)
_BLOCK = 1 << 16
"""Rows to compare at a time: their slots fit into the cache of a core."""
_LONG = 1024
"""After this many comparisons with rows that share its key, a row is compared only with rows that share more bits."""


@dataclass(frozen=True)
class Rows:
    """Rows to compare: first the offered rows, then the others, each from best to worst."""

    numbers: Numbers
    asked: Mask
    """Whether to find better rows for the row."""
    offered: Mask
    """Whether the row can be one of the better rows that others find."""

    def at(self, places: Places | Mask) -> "Rows":
        """The rows at these positions, in this order."""
        return Rows(self.numbers[places], self.asked[places], self.offered[places])


@dataclass(frozen=True)
class Hashes:
    """Hashes to compare."""

    words: U64
    """uint64 [rows, words]."""
    distance: int
    most: int
    """K: the number of better rows to find for each row."""

    def of(self, rows: Numbers) -> U64:
        """The hashes of the given rows, uint64 [rows, words]."""
        return np.take(self.words, rows, axis=0)  # much faster than indexing, which copies word by word


def distances(one: U64, other: U64) -> Counts:
    """The number of differing bits in each pair of hashes. uint64 [pairs, words] -> uint16 [pairs]."""
    bits = np.bitwise_count(one ^ other)
    total = np.zeros(len(bits), np.uint16)
    for word in range(bits.shape[1]):
        total += bits[:, word]
    return total


def slots_of(key: Key, words: U64) -> Slots:
    """The bits of the key's slot in each row. `words`: the rows' hashes, uint64 [rows, words]."""
    slots = words[:, key.word] & np.uint64(key.slot)
    if key.slot <= 0xFFFFFFFF:
        return slots.astype(np.uint32)
    if key.slot & 0xFFFFFFFF == 0:
        return (slots >> _HALF).astype(np.uint32)
    return slots


@dataclass(frozen=True)
class SmallGroups:
    """Small groups of rows that share a key."""

    rows: Rows
    members: Places
    """Positions of the rows, group after group, ascending within each group."""
    sizes: Places
    """Sizes of the groups."""

    def pairs(self, hashes: Hashes, key: Key) -> Iterator[Pairs]:
        """All pairs within the distance."""
        order = np.argsort(-self.sizes, kind="stable")  # largest first: the groups of a block have similar sizes
        starts, sizes = (np.cumsum(self.sizes) - self.sizes)[order], self.sizes[order]
        ends = np.cumsum(sizes)
        first = 0
        while first < len(ends):
            start = ends[first] - sizes[first]
            last = max(first + 1, int(np.searchsorted(ends, start + _BLOCK, side="right")))
            yield self._of_block(hashes, key, starts[first:last], sizes[first:last])
            first = last

    def _of_block(self, hashes: Hashes, key: Key, starts: Places, sizes: Places) -> Pairs:
        """Compare each row with the row one before it, then two before it, and so on up to the largest group size."""
        ends = np.cumsum(sizes)
        places = self.members[np.arange(ends[-1]) + np.repeat(starts - ends + sizes, sizes)]
        rows = self.rows.numbers[places]
        words = hashes.of(rows)
        slots = slots_of(key, words)
        of_larger = ends[np.searchsorted(-sizes, -np.arange(1, sizes[0]), side="left") - 1].tolist()
        found = [
            np.flatnonzero(np.bitwise_count(slots[step:end] ^ slots[: end - step]) <= key.radius)
            for step, end in enumerate(of_larger, start=1)
        ]
        better = np.concatenate([np.zeros(0, np.int64), *found])
        worse = better + np.repeat(np.arange(1, len(found) + 1), [len(each) for each in found])
        group = np.repeat(np.arange(len(sizes)), sizes)
        wanted = group[worse] == group[better]
        wanted &= self.rows.asked[places[worse]] & self.rows.offered[places[better]]
        worse, better = worse[wanted], better[wanted]
        near = distances(words.take(worse, axis=0), words.take(better, axis=0)) <= hashes.distance
        pairs: Pairs = (rows[worse[near]].astype(np.uint64) << _HALF) | rows[better[near]]
        return pairs


@dataclass(frozen=True)
class LargeGroups:
    """Large groups of rows that share a key. Within a group, rows are in the order of their numbers."""

    rows: Numbers
    starts: Places
    """For each row, the start of its group."""
    ends: Places
    """For each row, the end of the rows to compare it with."""
    slots: Slots

    def compare(self, hashes: Hashes, key: Key, at: Places, left: list[Places] | None) -> Iterator[Pairs]:
        """Compare the rows at these positions with the rows of their group, from the best down.

        The comparisons of a row end at its own position, or once it has found enough better rows. `left`: if it is a
        list, rows that would take long are not compared to the end; instead, their positions are appended to it.
        """
        other, found, compared = self.starts[at], np.zeros(len(at), np.uint16), 0
        while True:
            stay = np.flatnonzero((other < self.ends[at]) & (found < hashes.most))
            at, other, found = at[stay], other[stay], found[stay]
            if left is not None and compared >= _LONG:
                left.append(at[found == 0])  # a row that has found some better rows will soon find enough
                at, other, found, left = at[found > 0], other[found > 0], found[found > 0], None
            if not len(at):
                return
            order, ends = _longest_first(self.ends[at] - other)
            at, other, found = at[order], other[order], found[order]
            mine, finished = self.slots[at], 0
            for size in ends.tolist():
                near = np.flatnonzero(np.bitwise_count(self.slots[other[:size]] ^ mine[:size]) <= key.radius)
                if len(near):
                    near = near[found[near] < hashes.most]
                    bits = distances(hashes.of(self.rows[at[near]]), hashes.of(self.rows[other[near]]))
                    near = near[bits <= hashes.distance]
                    yield (self.rows[at[near]].astype(np.uint64) << _HALF) | self.rows[other[near]]
                    found[near] += 1
                    finished += int(np.count_nonzero(found[near] == hashes.most))
                other[:size] += 1
                compared += 1
                if 2 * finished > size:
                    break


def _longest_first(lengths: Places) -> tuple[Places, Places]:
    """(order of the rows by descending number of comparisons left; for each of the next steps, the number of rows that
    still take part)."""
    short = np.minimum(lengths, _LONG).astype(np.uint16)
    counts = np.bincount(short)
    return np.argsort(~short, kind="stable"), np.cumsum(counts[::-1])[::-1][1:]
