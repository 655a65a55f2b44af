"""Finds near duplicates by 64-bit perceptual hash: exactly the pairs within a distance, without comparing all pairs.

If two hashes differ in at most d bits and are cut into d + 2 bands, at least two of their bands are equal (the
pigeonhole principle, as in Manku, Jain and Das Sarma 2007, "Detecting near-duplicates for web crawling"). So for every
combination of two bands, only rows that agree in both are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.select.duplicates import DUPLICATE_GROUP
from pairmill.pipeline.select.filters import RowIndices
from pairmill.pipeline.select.keys import RANK, U64, mix
from pairmill.pipeline.select.outputs import Array, DedupKeys

NEAR_PAIR = np.dtype([*RANK.descr, ("better", "<i8"), ("worse", "<i8")])
"""Indices of two rows within the distance, and the rank of `better`. `better` is the row with the higher rank or, if
the ranks are equal, with the lower index."""

HASH_BITS = 64


def band_masks(distance: int) -> list[int]:
    """One bit mask for every combination of two of the d + 2 bands."""
    edges = np.linspace(0, HASH_BITS, distance + 3).round().astype(int)
    bands = [sum(1 << int(bit) for bit in range(start, end)) for start, end in pairwise(edges)]
    return [one | other for one, other in combinations(bands, 2)]


@dataclass(frozen=True)
class BandKeys:
    """Collects DEDUP_KEYs for `near_pairs`: `high` is the masked hash, `low` the whole hash."""

    keys: DedupKeys
    mask: int

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the keys."""
        return self.keys.columns

    @property
    def dtypes(self) -> Sequence[np.dtype[Any]]:
        """One array per collected partition."""
        return self.keys.dtypes

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """The keys of each partition, partitioned by the masked hash."""
        keys = self.keys.keys(table, row_indices)
        keys["low"] = keys["high"]
        keys["high"] &= np.uint64(self.mask)
        return self.keys.split(keys, mix(keys["high"]))


def near_pairs(distance: int, mask: int, *parts: Array) -> Array:
    """The NEAR_PAIRs of one partition whose masked hashes are equal and whose hashes differ in 1 to `distance` bits.

    If the masked hashes of a pair are equal under several masks, the pair is reported only for the first of these
    masks.
    """
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows["high"], kind="stable")]
    found = [np.zeros((0, 2), np.int64)]
    left = np.arange(len(rows))
    for step in range(1, len(rows)):  # ends after the longest run of equal keys
        left = left[: np.searchsorted(left, len(rows) - step)]
        left = left[rows["high"][left] == rows["high"][left + step]]
        if not len(left):
            break
        bits = np.bitwise_count(rows["low"][left] ^ rows["low"][left + step])
        near = left[(bits <= distance) & (bits > 0)]
        found.append(np.stack([near, near + step], axis=1))
    pairs = np.concatenate(found)  # (pairs, 2)
    one, other = rows[pairs[:, 0]], rows[pairs[:, 1]]
    is_first = _first_mask(one["low"] ^ other["low"], distance) == band_masks(distance).index(mask)
    return _better_first(one[is_first], other[is_first])


def greedy_clusters(pairs: Array, groups: Array) -> tuple[RowIndices, Array]:
    """Visit the rows from the best down; each row that has not been dropped drops the rows near it.

    Returns (rows to drop, sorted; DUPLICATE_GROUPs). A row is dropped only for a row that stays and is within the
    distance, so a chain of similar pictures does not become one cluster. `groups`: the exact duplicates, which are
    already dropped but count towards the size of a cluster.
    """
    pairs = pairs[np.lexsort((pairs["worse"], pairs["better"], ~pairs["low_bits"], ~pairs["rank"]))]
    copies = dict(zip(groups["row_index"].tolist(), groups["rows"].tolist(), strict=True))
    dropped: set[int] = set()
    clusters: dict[int, int] = {}
    for better, worse in zip(pairs["better"].tolist(), pairs["worse"].tolist(), strict=True):
        if better not in dropped and worse not in dropped:
            dropped.add(worse)
            clusters[better] = clusters.get(better, copies.get(better, 1)) + copies.get(worse, 1)
    sizes = np.array([*clusters.items()], np.int64).reshape(-1, 2)
    result = np.zeros(len(sizes), DUPLICATE_GROUP)
    result["row_index"], result["rows"] = sizes[:, 0], sizes[:, 1]
    return np.sort(np.fromiter(dropped, np.int64, len(dropped))), result


def _first_mask(differing: U64, distance: int) -> npt.NDArray[np.intp]:
    """For each pair, the index of the first mask under which its hashes are equal."""
    agrees = np.stack([differing & np.uint64(mask) == 0 for mask in band_masks(distance)])  # (masks, pairs)
    first: npt.NDArray[np.intp] = np.argmax(agrees, axis=0)
    return first


def _better_first(one: Array, other: Array) -> Array:
    rank, low_bits = (one[name] == other[name] for name in ("rank", "low_bits"))  # whether they are equal
    swap = (other["row_index"] < one["row_index"]) & rank & low_bits
    swap |= (other["low_bits"] > one["low_bits"]) & rank
    swap |= other["rank"] > one["rank"]
    pairs = np.empty(len(one), NEAR_PAIR)
    for name in ("rank", "low_bits"):
        pairs[name] = np.where(swap, other[name], one[name])
    pairs["better"] = np.where(swap, other["row_index"], one["row_index"])
    pairs["worse"] = np.where(swap, one["row_index"], other["row_index"])
    return pairs
