"""Near duplicates by a 64-bit perceptual hash: exactly the pairs within a distance, found without comparing all.

Two hashes that differ in at most d bits, cut into d + 2 bands, agree in two bands at least (the pigeonhole principle,
as in Manku, Jain and Das Sarma 2007, "Detecting near-duplicates for web crawling"). So for each two bands, only rows
that agree in both are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.select.duplicates import GROUP, Places
from pairmill.pipeline.select.keys import U64, mixed
from pairmill.pipeline.select.scan import Keys

PAIR = np.dtype([("better_rank", "<u8"), ("better", "<i8"), ("worse", "<i8")])
"""Two rows within the distance, by place; the better has the higher rank or, of equal ones, the lower place."""

HASH_BITS = 64


def band_masks(distance: int) -> list[int]:
    """Per two of the d + 2 bands, a mask of their bits."""
    edges = np.linspace(0, HASH_BITS, distance + 3).round().astype(int)
    bands = [sum(1 << int(bit) for bit in range(start, end)) for start, end in pairwise(edges)]
    return [one | other for one, other in combinations(bands, 2)]


@dataclass(frozen=True)
class Banded:
    """Rows for `near_pairs`, KEYED: `high` is the hash under the mask, `low` all of it."""

    keys: Keys
    mask: int

    @property
    def columns(self) -> frozenset[str]:
        """The hash's, and those of the score."""
        return self.keys.columns

    @property
    def dtypes(self) -> Sequence[np.dtype[Any]]:
        """One array per partition that is wanted now."""
        return self.keys.dtypes

    def collect(self, table: pa.Table, places: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """By partition of the masked hash."""
        keys = self.keys.keyed(table, places)
        keys["low"] = keys["high"]
        keys["high"] &= np.uint64(self.mask)
        return self.keys.split(keys, mixed(keys["high"]))


def near_pairs(distance: int, mask: int, *parts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The pairs (PAIR) of one partition that agree under the mask and differ in 1 to `distance` bits.

    A pair that agrees under several masks comes out under the first of them alone.
    """
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows["high"], kind="stable")]
    found = [np.zeros((0, 2), np.int64)]
    left = np.arange(len(rows))
    for step in range(1, len(rows)):  # as far as the longest run of equals
        left = left[: np.searchsorted(left, len(rows) - step)]
        left = left[rows["high"][left] == rows["high"][left + step]]
        if not len(left):
            break
        bits = np.bitwise_count(rows["low"][left] ^ rows["low"][left + step])
        near = left[(bits <= distance) & (bits > 0)]
        found.append(np.stack([near, near + step], axis=1))
    pairs = np.concatenate(found)  # (pairs, 2)
    one, other = rows[pairs[:, 0]], rows[pairs[:, 1]]
    first = _first_mask(one["low"] ^ other["low"], distance) == band_masks(distance).index(mask)
    return _ordered(one[first], other[first])


def greedy_clusters(pairs: npt.NDArray[Any], groups: npt.NDArray[Any]) -> tuple[Places, npt.NDArray[Any]]:
    """(places to drop, sorted; clusters as GROUP): from the best row down, each that still stands drops those near it.

    A row is dropped only for one that is kept and within the distance, so chains do not melt into one cluster.
    `groups`: how many rows a place stands for already (exact duplicates went before), where more than one.
    """
    pairs = pairs[np.lexsort((pairs["worse"], pairs["better"], ~pairs["better_rank"]))]
    copies = dict(zip(groups["place"].tolist(), groups["rows"].tolist(), strict=True))
    dropped: set[int] = set()
    clusters: dict[int, int] = {}
    for better, worse in zip(pairs["better"].tolist(), pairs["worse"].tolist(), strict=True):
        if better not in dropped and worse not in dropped:
            dropped.add(worse)
            clusters[better] = clusters.get(better, copies.get(better, 1)) + copies.get(worse, 1)
    sizes = np.array([*clusters.items()], np.int64).reshape(-1, 2)
    result = np.zeros(len(sizes), GROUP)
    result["place"], result["rows"] = sizes[:, 0], sizes[:, 1]
    return np.sort(np.fromiter(dropped, np.int64, len(dropped))), result


def _first_mask(differing: U64, distance: int) -> npt.NDArray[np.int64]:
    """Per pair, the index of the first mask under which it agrees."""
    agrees = np.stack([differing & np.uint64(mask) == 0 for mask in band_masks(distance)])  # (masks, pairs)
    first: npt.NDArray[np.int64] = np.argmax(agrees, axis=0)
    return first


def _ordered(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    swap = (other["rank"] > one["rank"]) | ((other["rank"] == one["rank"]) & (other["place"] < one["place"]))
    pairs = np.empty(len(one), PAIR)
    pairs["better_rank"] = np.where(swap, other["rank"], one["rank"])
    pairs["better"] = np.where(swap, other["place"], one["place"])
    pairs["worse"] = np.where(swap, one["place"], other["place"])
    return pairs
