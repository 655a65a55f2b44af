"""Adds up numbers with the same key."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def add_up(dtype: np.dtype[Any], parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Merge the records of all parts into one per key, in ascending order.

    The key is the first field of `dtype`; the other fields are added up.
    """
    key, *sums = dtype.names or ()
    every = np.concatenate([np.zeros(0, dtype), *parts])
    if not len(every):
        return every
    every = every[np.argsort(every[key], kind="stable")]
    first = np.flatnonzero(np.concatenate([[True], every[key][1:] != every[key][:-1]]))
    merged = every[first]
    for name in sums:
        merged[name] = np.add.reduceat(every[name], first)
    return merged
