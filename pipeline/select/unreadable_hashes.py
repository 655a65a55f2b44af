"""Counts the rows that a step cannot compare, because their column of perceptual hashes has no hash."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pairmill.pipeline.known.hash_index import is_hash
from pairmill.pipeline.known.keys import HASH_WORDS, PDQ, hash_problem
from pairmill.pipeline.select.expression_errors import ExpressionError
from pairmill.pipeline.select.filters import RowIndices
from pairmill.pipeline.select.outputs import Array
from pairmill.pipeline.select.selector import Selector


def require_hashes(schema: pa.Schema, names: Iterable[str]) -> None:
    """Raise ExpressionError if one of these columns is to have perceptual hashes and cannot have any."""
    if problem := hash_problem(schema, names):
        raise ExpressionError(problem)


def count_without_hash(selector: Selector, names: Iterable[str]) -> int:
    """The number of remaining rows without a readable PDQ hash; 0 if `pdq` is not among the compared columns. Every
    pair has a phash."""
    if PDQ not in names:
        return 0
    counts = [handle for (handle,) in selector.scan(_WithoutHash())]
    return sum(int(each.sum()) for each in selector.tasks.get(counts))


@dataclass(frozen=True)
class _WithoutHash:
    """Counts the rows of each shard without a readable PDQ hash."""

    columns: frozenset[str] = frozenset({PDQ})
    dtypes: Sequence[np.dtype[Any]] = (np.dtype(np.int64),)

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """One number."""
        return [np.array([np.count_nonzero(~is_hash(table[PDQ], HASH_WORDS[PDQ]))])]
