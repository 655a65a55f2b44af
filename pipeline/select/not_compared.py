"""Counts the rows that the steps `known` and `leak` could not compare, because they have no usable value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pairmill.pipeline.known.embeddings import read_vectors
from pairmill.pipeline.known.keys import columns_of, has_value
from pairmill.pipeline.select.filters import RowIndices
from pairmill.pipeline.select.outputs import Array
from pairmill.pipeline.select.selector import Selector
from pairmill.schemas.known import ValueKind


@dataclass(frozen=True)
class NotCompared:
    """Counts the remaining rows that could not be compared, per kind."""

    values: Sequence[ValueKind]
    embeddings: Mapping[str, str]
    """Kind -> column."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns that were compared."""
        return frozenset(self.embeddings.values()).union(*map(columns_of, self.values))

    @property
    def kinds(self) -> Sequence[str]:
        """The kinds, in the order of the counts."""
        return [*self.values, *self.embeddings]

    @property
    def dtypes(self) -> Sequence[np.dtype[Any]]:
        """One number per kind."""
        return [np.dtype(np.int64)] * len(self.kinds)

    def count(self, selector: Selector) -> dict[str, int]:
        """Scan, and return kind -> number of rows, without zeros."""
        counts = zip(*selector.scan(self), strict=True)  # per kind, one handle per chunk
        sums = [int(sum(each.sum() for each in selector.tasks.get(handles))) for handles in counts]
        return {kind: count for kind, count in zip(self.kinds, sums, strict=True) if count}

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """The counts of some rows."""
        masks = [
            *(has_value(kind, table) for kind in self.values),
            *(read_vectors(table[column])[1] for column in self.embeddings.values()),
        ]
        return [np.array([np.count_nonzero(~mask)]) for mask in masks]
