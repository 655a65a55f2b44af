"""Finds and sorts the lowest of many keys."""

from typing import Any

import numpy as np
import numpy.typing as npt


def first_sorted(keys: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """The indices of at least the `size` lowest keys, in ascending order of the keys. NaN counts as highest; equal keys
    keep their order."""
    if 4 * size < len(keys):
        last = np.partition(keys, size)[size]
        if last == last:  # otherwise it is NaN, which is not equal to itself
            chosen = np.flatnonzero(keys <= last)
            return chosen[np.argsort(keys[chosen], kind="stable")]
    return np.argsort(keys, kind="stable")
