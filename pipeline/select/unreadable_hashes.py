"""Counts the rows that a step cannot compare, or only in part, because of their perceptual hashes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pairmill.pipeline.known.hash_index import is_hash
from pairmill.pipeline.known.keys import HASH_WORDS, PDQ, PDQ_QUALITY, has_value, hash_problem
from pairmill.pipeline.select.expression_errors import ExpressionError
from pairmill.pipeline.select.filters import RowIndices
from pairmill.pipeline.select.outputs import Array
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.tasks import Handle


def require_hashes(schema: pa.Schema, names: Iterable[str]) -> None:
    """Raise ExpressionError if one of these columns is to have perceptual hashes and cannot have any."""
    if problem := hash_problem(schema, names):
        raise ExpressionError(problem)


def count_unusual(selector: Selector, names: Iterable[str]) -> tuple[int, int]:
    """The number of remaining rows without a readable PDQ hash, and of those whose hash has low quality. Both are 0 if
    `pdq` is not among the compared columns, because every pair has a phash."""
    if PDQ not in names:
        return 0, 0
    unreadable, low_quality = zip(*selector.scan(_Unusual()), strict=True)
    return _total(selector, unreadable), _total(selector, low_quality)


def _total(selector: Selector, counts: Sequence[Handle[Array]]) -> int:
    return sum(int(each.sum()) for each in selector.tasks.get(counts))


@dataclass(frozen=True)
class _Unusual:
    """Counts the rows of each shard without a readable PDQ hash, and those whose hash has low quality."""

    columns: frozenset[str] = frozenset({PDQ, PDQ_QUALITY})
    dtypes: Sequence[np.dtype[Any]] = (np.dtype(np.int64),) * 2

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """Two numbers."""
        readable, usable = is_hash(table[PDQ], HASH_WORDS[PDQ]), has_value(PDQ, table)
        return [np.array([np.count_nonzero(rows)]) for rows in (~readable, readable & ~usable)]
