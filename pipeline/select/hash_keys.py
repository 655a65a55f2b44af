"""Chooses keys of perceptual hashes: sets of bits such that any two hashes within a distance agree on at least one key.

Each row is compared only with rows that share a key with it. A hash is cut into equal slots; if two hashes differ in at
most d bits, some slot differs in at most r = floor(d / slots) bits (the pigeonhole principle, as in Norouzi, Punjani
and Fleet 2012, "Fast search in Hamming space with multi-index hashing"). The bits of a slot are dealt to bands. The
blocks of a covering design are sets of bands such that any r bands are in at least one block; the bits outside that
block then agree. If the blocks are all choices of r out of r + k bands, this is the method of Manku, Jain and Das Sarma
2007, "Detecting near-duplicates for web crawling".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

WORD_BITS = 64
_ODD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio, the multiplier of Knuth's multiplicative hashing."""

_SYSTEM_8 = ((0, 1, 2, 3), (0, 1, 4, 5), (0, 1, 6, 7), (0, 2, 4, 6), (0, 2, 5, 7), (0, 3, 4, 7), (0, 3, 5, 6))
"""Half of the blocks of the Steiner quadruple system of order 8; the other half are their complements."""
_SYSTEM_10 = ((0, 1, 3, 4), (0, 1, 2, 6), (0, 2, 4, 7))
"""Base blocks of the Steiner quadruple system of order 10, which is cyclic."""

MAX_SMALL = 64
"""Maximum size of a group of rows with the same key in which all pairs are compared, in many groups at once."""
_SORT_COST, _LOOK_UP_COST, _COMPARE_COST = 20.0, 30.0, 1.7
"""Nanoseconds to sort a row by one key, to look up its hash if other rows share the key, and to compare two rows of a
small group. In a large group, a comparison takes about twice as long."""
_SAMPLED_KEYS = 4


@dataclass(frozen=True)
class Key:
    """Bits of a hash on which two rows must agree, and how many bits of the slot around them may differ."""

    word: int
    """Index of the 64-bit word of the hash that contains these bits."""
    bits: int
    """Mask of the bits that must agree."""
    slot: int
    """Mask of all bits of the slot."""
    radius: int
    """Maximum number of differing bits in the slot."""

    def values(self, words: U64) -> U64:
        """A hash of the key's bits, below 2^32, for each uint64 in `words` (the key's word of each row).

        Equal bits have equal hashes; different bits rarely do.
        """
        found = words & np.uint64(self.bits)
        found *= _ODD
        found >>= np.uint64(32)
        return found

    def refined(self) -> Sequence["Key"]:
        """Keys with more bits. Two hashes that agree on this key and are within its radius agree on at least one of
        them. Empty if the slot has too few bits left."""
        left = _bit_numbers(self.slot & ~self.bits)
        bands = [_mask(left[first :: self.radius + 1]) for first in range(self.radius + 1)]
        if len(left) < 2 * len(bands):
            return ()
        return [Key(self.word, self.bits | band, self.slot, self.radius) for band in bands]


def every_pair(distance: int) -> Key:
    """A key that all hashes share, for sets of rows that are small enough to compare all pairs."""
    return Key(0, 0, (1 << WORD_BITS) - 1, distance)


def choose_keys(distance: int, sample: U64, num_rows: int) -> Sequence[Key]:
    """The cheapest set of keys. All candidate sets find the same pairs.

    `sample`: uint64 [rows, words], a sample of the `num_rows` hashes, to estimate how many rows share a key. It is
    needed because the bits of real hashes are neither uniform nor independent.
    """
    choices = list(plans(distance, sample.shape[1] * WORD_BITS))
    costs = [_cost(plan, sample, num_rows) for plan in choices]
    return choices[int(np.argmin(costs))]


def plans(distance: int, bits: int) -> Iterator[Sequence[Key]]:
    """Candidate sets of keys. Each set finds all pairs of hashes of length `bits` within the distance."""
    slots = max(1, bits // WORD_BITS)
    while slots <= bits // 8:
        radius, width = distance // slots, bits // slots
        for bands, blocks in _designs(radius, width):
            yield [key for slot in range(slots) for key in _keys_of_slot(slot, width, radius, bands, blocks)]
        slots *= 2


def _designs(radius: int, width: int) -> Iterator[tuple[int, Sequence[Sequence[int]]]]:
    """Designs (number of bands, blocks of bands) with few blocks, such that any `radius` bands are in some block."""
    for common in range(1, 5):
        bands = radius + common
        if bands <= width and len(blocks := list(combinations(range(bands), radius))) <= 256:
            yield bands, blocks
    if radius == 3 and width >= 10:
        yield 8, [*_SYSTEM_8, *(tuple(sorted(set(range(8)).difference(block))) for block in _SYSTEM_8)]
        yield 10, [[(band + shift) % 10 for band in block] for block in _SYSTEM_10 for shift in range(10)]


def _keys_of_slot(slot: int, width: int, radius: int, bands: int, blocks: Sequence[Sequence[int]]) -> Iterator[Key]:
    word, first = divmod(slot * width, WORD_BITS)
    whole = _mask(range(first, first + width))
    masks = [_mask(range(first + band, first + width, bands)) for band in range(bands)]
    for block in blocks:
        yield Key(word, whole & ~sum(masks[band] for band in block), whole, radius)


def _cost(keys: Sequence[Key], sample: U64, num_rows: int) -> float:
    """The estimated nanoseconds per row with these keys."""
    costs = []
    for key in [keys[at * len(keys) // _SAMPLED_KEYS] for at in range(_SAMPLED_KEYS)]:
        sizes = np.unique(key.values(sample[:, key.word]), return_counts=True)[1].astype(np.float64)
        by_chance = len(sample) ** 2 / 2.0 ** min(32, key.bits.bit_count())  # a small sample may contain no such pair
        sharing = max(float((sizes * (sizes - 1)).sum()), by_chance) * num_rows / max(1, len(sample)) ** 2
        compare = _COMPARE_COST if sharing < MAX_SMALL else 2 * _COMPARE_COST
        costs.append(_SORT_COST + _LOOK_UP_COST * min(1.0, sharing) + compare * sharing / 2)
    return len(keys) * float(np.mean(costs))


def _mask(bits: Sequence[int]) -> int:
    return sum(1 << bit for bit in bits)


def _bit_numbers(mask: int) -> list[int]:
    return [bit for bit in range(WORD_BITS) if mask >> bit & 1]
