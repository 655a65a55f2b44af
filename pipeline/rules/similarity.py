"""THE place where `rules.min_similarity` is compared with the similarity of picture and caption.

`select` applies its thresholds in `select/comparisons.py`.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.rules.base import SourceRules, Verdict, rule
from pairmill.schemas.status import Status

_PREFIX = "similarity_"


@rule(Status.LOW_SIMILARITY)
def low_similarity(rows: pa.Table, rules: SourceRules) -> Verdict:
    """A cosine similarity is null or below `min_similarity`. Detail: the first score below its threshold, such as "tiny
    0.213".

    A number applies to every `similarity_ALIAS` column, a dict to the aliases that it names. Raises ValueError if
    there is no such column.
    """
    if rules.min_similarity is None:
        return None
    keep, detail = pa.array([True] * rows.num_rows), pa.nulls(rows.num_rows, pa.string())
    for alias, threshold in _thresholds(rows, rules.min_similarity).items():
        scores = rows[_PREFIX + alias]
        # Compare as float32, the type of the scores: otherwise, a score of 0.7 would be below a threshold of 0.7.
        passes = pc.greater_equal(scores, pa.scalar(threshold, pa.float32())).fill_null(False)
        rounded = pc.cast(pc.round(scores.cast(pa.float64()), 3), pa.string())
        score_text = pc.binary_join_element_wise(alias, pc.fill_null(rounded, "no score"), " ")
        detail = pc.coalesce(detail, pc.if_else(passes, pa.scalar(None, pa.string()), score_text))
        keep = pc.and_(keep, passes)
    return keep, detail


def _thresholds(rows: pa.Table, min_similarity: float | dict[str, float]) -> dict[str, float]:
    aliases = [name.removeprefix(_PREFIX) for name in rows.column_names if name.startswith(_PREFIX)]
    thresholds = min_similarity if isinstance(min_similarity, dict) else dict.fromkeys(aliases, min_similarity)
    if unknown := sorted(set(thresholds) - set(aliases)):
        raise ValueError(f"rules.min_similarity names {unknown}, but only {aliases} have scores")
    if not thresholds and not isinstance(min_similarity, dict):
        raise ValueError("rules.min_similarity needs a model: there is no column with scores")
    return thresholds
