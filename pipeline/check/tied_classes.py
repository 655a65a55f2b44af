"""Tells which classes of a zero-shot score are as likely as others, so that rounding decides their order."""

import numpy as np
import pyarrow as pa

from pairmill.pipeline.score.kind import Mask


def untied(name: str, made: pa.Table, tolerance: float) -> dict[str, Mask]:
    """For each column with classes, the rows of a score `name` of kind `classes` whose classes are certain, [rows].

    The most likely class is certain if its probability exceeds the second one's by more than `tolerance` of it. The
    first few are, if that holds for each of them.
    """
    probability, margin = (made[f"{name}_{end}"].to_numpy() for end in ("probability", "margin"))
    is_clear: Mask = ~(margin <= tolerance * probability)  # also where both are NaN, for null
    found = {name: is_clear, f"{name}_index": is_clear}
    if f"{name}_top" in made.column_names:
        lists = made[f"{name}_top_probability"].to_pylist()
        found[f"{name}_top"] = np.array([each is None or _is_clear(each, tolerance) for each in lists], bool)
    return found


def _is_clear(probabilities: list[float], tolerance: float) -> bool:
    """Whether the gaps between descending probabilities are not tiny."""
    values = np.array(probabilities)
    return bool((values[:-1] - values[1:] > tolerance * values[:-1]).all())
