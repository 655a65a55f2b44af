"""Writes numbers with as many digits as they have."""

import numpy as np
import pyarrow as pa


def fewest_digits(number: float, kind: pa.DataType) -> str:
    """The fewest digits that identify a floating-point number among the values of its type. A float64 needs its own:
    the digits of the float32 0.7 are `0.7`, which is a larger float64."""
    return repr(float(number)) if kind == pa.float64() else str(np.float32(number))
