"""Compares the rows of one cluster, best rows first.

The cosine of two rows is that of the stored float16 vectors, and rounding errors never change a decision: float32
decides the clear cases; close to the threshold, float64 decides, because the dot product of two float16 unit vectors
is exact in float64. The result therefore does not depend on block size, order or machine.
"""

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.known.embeddings import Floats, Halves, exact_cosines, unit
from pairmill.pipeline.select.filters import RowIndices, RowMask

_BLOCK_ROWS = 256
"""How many rows are compared with all later rows at once."""
_STRIPE_ROWS = 2_048
"""How many later rows a block is compared with at once: their cosines take 2 MB, which fits in the cache."""
_EXACT_PAIRS = 4_096
_COMPACT_SHARE = 0.75

STAYS = -1


def near_rows(vectors: Halves, is_guest: RowMask, threshold: float) -> RowIndices:
    """For each row of a cluster, the better row because of which it is dropped (its parent), or STAYS; [rows]. Ignores
    other clusters.

    `vectors`: float16 [columns, rows, dim], best row first. A row is dropped if, in all columns, its cosine with a
    better row that stays is at least the threshold. Two guests (rows whose home is another cluster) are not compared
    with each other here, but in the home cluster of one of them, if the other is in that cluster too.
    """
    cluster = _Cluster(vectors, is_guest, threshold)
    while cluster.has_pairs:
        cluster.step()
    return cluster.parents


class _Cluster:
    """The rows that have not been compared yet: residents and guests separately, each with the best row first."""

    def __init__(self, vectors: Halves, is_guest: RowMask, threshold: float) -> None:
        self.parents = np.full(len(is_guest), STAYS, np.int64)
        self._vectors, self._is_guest, self._threshold = vectors, is_guest, threshold
        margin = (vectors.shape[2] + 8) * 2.0**-24  # the error of a float32 dot product (Higham 2002, 3.1)
        self._low, self._high = np.float32(threshold - margin), np.float32(threshold + margin)
        self._waiting = [np.flatnonzero(~is_guest), np.flatnonzero(is_guest)]
        self._units = [unit(vectors[:, rows]) for rows in self._waiting]

    @property
    def has_pairs(self) -> bool:
        residents, guests = map(len, self._waiting)
        return residents > 0 and residents + guests > 1

    def step(self) -> None:
        """Decide which of the best rows stay, then compare all later rows with them."""
        best = np.sort(np.concatenate([rows[:_BLOCK_ROWS] for rows in self._waiting]))[:_BLOCK_ROWS]
        heads = [int(np.searchsorted(rows, best[-1], "right")) for rows in self._waiting]
        rows = np.concatenate([rows[:head] for rows, head in zip(self._waiting, heads, strict=True)])
        units = np.concatenate([each[:, :head] for each, head in zip(self._units, heads, strict=True)], axis=1)
        order = np.argsort(rows)
        order = order[self.parents[rows[order]] == STAYS]
        rows, units = rows[order], units[:, order]
        self._decide(rows, units)
        self._waiting = [each[head:] for each, head in zip(self._waiting, heads, strict=True)]
        self._units = [each[:, head:] for each, head in zip(self._units, heads, strict=True)]
        stays = self.parents[rows] == STAYS
        resident = stays & ~self._is_guest[rows]
        self._compare(rows[resident], units[:, resident], to_guests=True)
        guest = stays & self._is_guest[rows]
        self._compare(rows[guest], units[:, guest], to_guests=False)
        self._compact()

    def _decide(self, rows: RowIndices, units: Floats) -> None:
        """Compare rows with each other, best row first, and set the parents of those that are dropped."""
        near = np.triu(self._is_near(_cosines(units, units), rows, rows), 1)
        guests = self._is_guest[rows]
        near &= ~(guests[:, None] & guests)
        for row in np.flatnonzero(near.any(axis=1)):
            if self.parents[rows[row]] == STAYS:
                later = rows[near[row]]
                self.parents[later[self.parents[later] == STAYS]] = rows[row]

    def _compare(self, rows: RowIndices, units: Floats, to_guests: bool) -> None:
        """Compare all waiting rows, or only the residents among them, with `rows`, which stay."""
        for waiting, others in list(zip(self._waiting, self._units, strict=True))[: 2 if to_guests else 1]:
            for start in range(0, len(waiting) if len(rows) else 0, _STRIPE_ROWS):
                stripe = slice(start, start + _STRIPE_ROWS)
                cosines = _cosines(others[:, stripe], units)  # [stripe, rows]
                maybe = np.flatnonzero((cosines >= self._low).any(axis=1) & (self.parents[waiting[stripe]] == STAYS))
                if len(maybe):
                    found = waiting[stripe][maybe]
                    near = self._is_near(cosines[maybe], found, rows)
                    goes = near.any(axis=1)
                    self.parents[found[goes]] = rows[near[goes].argmax(axis=1)]

    def _is_near(self, cosines: Floats, rows: RowIndices, others: RowIndices) -> npt.NDArray[np.bool_]:
        """Whether each pair of rows is near, from their cosines in float32; [rows, others]."""
        near: npt.NDArray[np.bool_] = cosines >= self._high
        close = np.flatnonzero((cosines >= self._low) & ~near)
        for start in range(0, len(close), _EXACT_PAIRS):
            some = close[start : start + _EXACT_PAIRS]
            one, other = np.unravel_index(some, near.shape)
            exact = exact_cosines(self._vectors[:, rows[one]], self._vectors[:, others[other]])
            near[one, other] = (exact >= self._threshold).all(axis=0)
        return near

    def _compact(self) -> None:
        """If many of the waiting rows have been dropped, remove those."""
        for side, rows in enumerate(self._waiting):
            stays = self.parents[rows] == STAYS
            if stays.sum() < _COMPACT_SHARE * len(rows):
                self._waiting[side], self._units[side] = rows[stays], self._units[side][:, stays]


def _cosines(one: Floats, other: Floats) -> Floats:
    """The lowest cosine over all columns. [columns, n, dim] and [columns, m, dim] -> [n, m]."""
    found: Floats = one[0] @ other[0].T
    for left, right in zip(one[1:], other[1:], strict=True):
        np.minimum(found, left @ right.T, out=found)
    return found
