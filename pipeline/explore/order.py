"""Sorts the first rows of many."""

from typing import Any

import numpy as np
import numpy.typing as npt


def first_sorted(keys: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """The indices of the `size` lowest keys, ascending, and of those equal to the last one. NaN is the highest; of
    equal keys, the first one comes first."""
    if 4 * size < len(keys):
        last = np.partition(keys, size)[size]
        if last == last:  # otherwise NaN, which equals nothing
            chosen = np.flatnonzero(keys <= last)
            return chosen[np.argsort(keys[chosen], kind="stable")]
    return np.argsort(keys, kind="stable")
