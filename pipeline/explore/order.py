"""Finds and sorts the lowest of many keys."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.arrow import fit_float64, widened

Doubles = npt.NDArray[np.float64]


def numbers(column: pa.ChunkedArray) -> Doubles:
    """The nearest float64 of each value of a numeric column; NaN for null."""
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def sort_keys(column: pa.ChunkedArray) -> Doubles:
    """Numbers that sort like the values of a numeric column, NaN for null: their `numbers` or, if float64 may not tell
    the integers or decimals apart, their ranks."""
    if pa.types.is_floating(column.type) or (pa.types.is_integer(column.type) and fit_float64(column)):
        return numbers(column)
    ranks = pc.rank(widened(column), sort_keys="ascending", tiebreaker="dense").to_numpy().astype(np.float64)
    return np.where(column.is_valid().to_numpy(), ranks, np.nan)


def first_sorted(keys: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """The indices of at least the `size` lowest keys, in ascending order of the keys. NaN counts as highest; equal keys
    keep their order."""
    if 4 * size < len(keys):
        last = np.partition(keys, size)[size]
        if last == last:  # otherwise it is NaN, which is not equal to itself
            chosen = np.flatnonzero(keys <= last)
            return chosen[np.argsort(keys[chosen], kind="stable")]
    return np.argsort(keys, kind="stable")
