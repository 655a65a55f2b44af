"""Finds which hashes are near any hash of a list, such as a public list of known pictures.

Multi-index hashing (Norouzi, Punjani and Fleet 2012, "Fast search in Hamming space with multi-index hashing"): hashes
are cut into slots, and two hashes within the distance differ in at most r bits (the distance divided by the number of
slots, rounded down) in at least one slot. For each slot, the list is sorted by the slot's value, and each hash looks up
its own value and all values that differ from it in up to r bits.
"""

from binascii import unhexlify
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

U64 = npt.NDArray[np.uint64]
Words = npt.NDArray[np.uint64]
"""Hashes as uint64 [rows, words]: 64 bits per word, in the order of their hex digits."""
Indices = npt.NDArray[np.int64]

_PROBED_ROWS = 1 << 12
"""Number of hashes looked up at a time: their candidates in a list of a million hashes fit into memory."""
_CANDIDATES = 1 << 22
"""Number of candidates compared at a time, unless a single hash has more. Each takes 130 bytes."""


def hash_words(digits: pa.ChunkedArray | pa.Array, words: int) -> Words:
    """Hashes in hex digits, 16 per word in either case, as uint64 [rows, words]. Raises ValueError for anything else,
    and for null."""
    array = digits.combine_chunks() if isinstance(digits, pa.ChunkedArray) else digits
    if array.null_count:
        raise ValueError("a hash is null")
    array = array.cast(pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    if (np.diff(offsets) != 16 * words).any():
        raise ValueError(f"a hash does not have {16 * words} hex digits")
    if not len(array):
        return np.zeros((0, words), np.uint64)
    try:
        found = unhexlify(memoryview(array.buffers()[2])[offsets[0] : offsets[-1]])
    except ValueError:
        raise ValueError("a hash contains characters that are not hex digits") from None
    return np.frombuffer(found, ">u8").astype(np.uint64).reshape(-1, words)


def is_hash(digits: pa.ChunkedArray | pa.Array, words: int) -> npt.NDArray[np.bool_]:
    """Whether each value is a hash that `hash_words` reads: bool [rows]. False for null. `digits`: text."""
    pattern = f"^[0-9a-fA-F]{{{16 * words}}}$"
    matches = pc.match_substring_regex(digits.cast(pa.large_string()), pattern).fill_null(False)
    found: npt.NDArray[np.bool_] = matches.to_numpy(zero_copy_only=False)
    return found


@dataclass(frozen=True)
class HashIndex:
    """An index of a list of hashes, which finds those near other hashes."""

    words: Words
    distance: int
    slots: int
    tables: Sequence[tuple[U64, npt.NDArray[np.int64]]]
    """For each slot: the slot's values in the list's hashes, sorted, and the indices of these hashes."""

    @classmethod
    def of(cls, words: Words, distance: int) -> "HashIndex":
        """Index a list. `distance`: the largest number of differing bits that counts as near."""
        slots = _cheapest_slots(words.shape[1], distance, len(words))
        values = [_slot(words, slots, slot) for slot in range(slots)]
        orders = [np.argsort(each, kind="stable") for each in values]
        tables = [(each[order], order) for each, order in zip(values, orders, strict=True)]
        return cls(words, distance, slots, tables)

    def has_near(self, words: Words) -> npt.NDArray[np.bool_]:
        """For each hash, uint64 [rows, words], whether any hash of the list is within the distance: bool [rows]."""
        parts = [self._has_near(words[at : at + _PROBED_ROWS]) for at in range(0, len(words), _PROBED_ROWS)]
        return np.concatenate([np.zeros(0, np.bool_), *parts])

    def _has_near(self, words: Words) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(words), np.bool_)
        for slot in range(self.slots):
            for flips in self._flips():
                for asking, _, _ in self._probe(words, np.flatnonzero(~found), slot, flips):
                    found[asking] = True
        return found

    def near_pairs(self, words: Words) -> Iterator[tuple[Indices, Indices, Indices]]:
        """All pairs within the distance, in parts: (indices in `words`, indices in the list, differing bits). A pair
        can occur more than once."""
        for start in range(0, len(words), _PROBED_ROWS):
            block = words[start : start + _PROBED_ROWS]
            for slot in range(self.slots):
                for flips in self._flips():
                    for asking, listed, bits in self._probe(block, np.arange(len(block)), slot, flips):
                        yield asking + start, listed, bits

    def _flips(self) -> Iterator[np.uint64]:
        """The bit patterns by which a looked-up value can differ in a slot."""
        return _flips(self.words.shape[1] * 64 // self.slots, self.distance // self.slots)

    def _probe(
        self, words: Words, rows: Indices, slot: int, flips: np.uint64
    ) -> Iterator[tuple[Indices, Indices, Indices]]:
        """The near pairs of these rows and hashes of the list that differ from them by exactly `flips` in this slot."""
        sorted_values, order = self.tables[slot]
        probed = _slot(words[rows], self.slots, slot) ^ flips
        first = np.searchsorted(sorted_values, probed)
        counts = np.searchsorted(sorted_values, probed, "right") - first
        cuts = np.searchsorted(np.cumsum(counts), np.arange(_CANDIDATES, counts.sum(), _CANDIDATES))
        for part in np.split(np.arange(len(rows)), cuts) if len(cuts) else [slice(None)]:
            asking = np.repeat(rows[part], counts[part])
            within = np.arange(len(asking)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
            listed = order[np.repeat(first[part], counts[part]) + within]
            bits = np.bitwise_count(words[asking] ^ self.words[listed]).sum(axis=1, dtype=np.int64)
            near = bits <= self.distance
            yield asking[near], listed[near], bits[near]


def _slot(words: Words, slots: int, slot: int) -> U64:
    """The value of one slot in each hash."""
    width = words.shape[1] * 64 // slots
    word, shift = divmod(slot * width, 64)
    value = words[:, word] >> np.uint64(shift)
    return value if width == 64 else value & np.uint64((1 << width) - 1)


def _flips(width: int, radius: int) -> Iterator[np.uint64]:
    """All values of `width` bits with at most `radius` bits set."""
    for size in range(radius + 1):
        for bits in combinations(range(width), size):
            yield np.uint64(sum(1 << bit for bit in bits))


def _cheapest_slots(words: int, distance: int, listed: int) -> int:
    """The number of slots with the fewest look-ups and candidates per hash."""

    def cost(slots: int) -> float:
        width, radius = words * 64 // slots, distance // slots
        probes = sum(comb(width, size) for size in range(radius + 1))
        return float(slots * probes * (1 + listed / 2**width))

    return min((words * each for each in (1, 2, 4, 8)), key=cost)
