"""Exact duplicates in one partition of the keys: the best row of a group stays, the others' places leave by chunk."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
LARGEST = 5
"""Groups that a report names."""

GROUP = np.dtype([("place", "<i8"), ("rows", "<i8")])
"""The row that stays, and how many there were."""


def merge_duplicates(chunk_starts: Sequence[int], *parts: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """(groups of two and more, GROUP), then per chunk the places that are dropped, sorted. `parts`: of KEYED.

    The best row of a group has the highest rank; of equal ones, the lowest place.
    """
    keys = np.concatenate(parts)
    keys = keys[_has_twin(keys["high"])]  # what is alone by half of its identity is alone
    keys = keys[np.lexsort((keys["place"], ~keys["rank"], keys["low"], keys["high"]))]
    same = np.zeros(len(keys), np.bool_)  # as the one before
    same[1:] = (keys["high"][1:] == keys["high"][:-1]) & (keys["low"][1:] == keys["low"][:-1])
    firsts = np.flatnonzero(~same)
    sizes = np.diff(np.append(firsts, len(keys)))
    groups = np.zeros(int((sizes > 1).sum()), GROUP)
    groups["place"], groups["rows"] = keys["place"][firsts[sizes > 1]], sizes[sizes > 1]
    return groups, *by_chunk(np.sort(keys["place"][same]), chunk_starts)


def by_chunk(places: Places, chunk_starts: Sequence[int]) -> list[Places]:
    """Sorted places, cut where the chunks are."""
    return np.split(places, np.searchsorted(places, np.asarray(chunk_starts[1:], np.int64)))


def largest(groups: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The few with the most rows; of equal ones, the first."""
    return groups[np.lexsort((groups["place"], -groups["rows"]))[:LARGEST]]


def _has_twin(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    order = np.argsort(values)
    equal = values[order[1:]] == values[order[:-1]]
    twin = np.zeros(len(values), np.bool_)
    twin[order[1:]] |= equal
    twin[order[:-1]] |= equal
    return twin
