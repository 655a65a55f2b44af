"""Finds hashes within a distance of known ones, exactly, without comparing all pairs.

If two hashes differ in at most d bits and are cut into d + 1 bands, they agree in at least one band (the
pigeonhole principle, as in Manku, Jain and Das Sarma 2007, "Detecting near-duplicates for web crawling"). So each band
has a file of keys: the hashes, rotated to put the band first. A hash is compared only with the hashes that begin with
the same band: about 1/2^b of the known hashes for each band of b bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pairmill.pipeline.known.key_file import KeyFile
from pairmill.pipeline.known.keys import Keys, Mask

HASH_BITS = 64
_PAIRS = 1 << 20
"""Number of pairs of hashes compared at a time: a few arrays of 8 MB."""


@dataclass(frozen=True, order=True)
class Band:
    """Consecutive bits of a hash, counted from the highest."""

    first_bit: int
    bits: int

    def first(self, hashes: Keys) -> Keys:
        """The hashes [n], rotated so that the band comes first."""
        if not self.first_bit:
            return hashes
        left, right = np.uint64(self.first_bit), np.uint64(HASH_BITS - self.first_bit)
        return (hashes << left) | (hashes >> right)

    def near(self, file: KeyFile, hashes: Keys, distance: int) -> Mask:
        """For each hash [n], whether this band's file has a hash within the distance and with the same band."""
        rotated, rest = self.first(hashes), np.uint64(HASH_BITS - self.bits)
        found = np.zeros(len(hashes), np.bool_)
        lowest = (rotated >> rest) << rest
        starts = np.searchsorted(file.keys, lowest)
        counts = np.searchsorted(file.keys, lowest | np.uint64((1 << int(rest)) - 1), side="right") - starts
        ends = np.cumsum(counts)
        for first in range(0, int(ends[-1]) if len(ends) else 0, _PAIRS):
            pairs = np.arange(first, min(first + _PAIRS, int(ends[-1])))
            row = np.searchsorted(ends, pairs, side="right")
            key = starts[row] + pairs - (ends[row] - counts[row])
            is_near = np.bitwise_count(file.keys[key] ^ rotated[row]) <= distance
            found[row[is_near]] = True
        return found


WHOLE = Band(0, HASH_BITS)
"""The only band if values must be equal."""


def bands(distance: int) -> Sequence[Band]:
    """The bands for a distance; for 0, the whole hash."""
    edges = np.linspace(0, HASH_BITS, distance + 2).round().astype(int).tolist()
    return [Band(start, end - start) for start, end in pairwise(edges)]
