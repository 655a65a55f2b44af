"""The step `dedup`: keeps one row of each group of duplicates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pairmill.pipeline.select.duplicates import DUPLICATE_GROUP, largest, merge_duplicates
from pairmill.pipeline.select.expression_errors import ExpressionError, no_column
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.filters import RowIndices
from pairmill.pipeline.select.keys import can_be_key
from pairmill.pipeline.select.near_duplicates import drop_near_duplicates
from pairmill.pipeline.select.near_hashes import HashKeys
from pairmill.pipeline.select.outputs import DEDUP_KEY, Array, DedupKeys
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.steps.described import described
from pairmill.pipeline.select.tasks import Handle
from pairmill.pipeline.select.unreadable_hashes import count_unusual, require_hashes
from pairmill.schemas.select_steps import EMBEDDINGS, Dedup
from pairmill.schemas.subset import StepReport

PARTITION_ROWS = 2_000_000


@dataclass
class DedupStep:
    """Keeps the best row of each group of duplicates."""

    dedup: Dedup
    clusters: Array = field(default_factory=lambda: np.zeros(0, DUPLICATE_GROUP))
    """The largest groups; shape (groups,)."""
    not_compared: int = 0
    """Number of rows without a value, or without a readable hash."""
    low_quality: int = 0
    """With a distance by pdq, the number of rows whose hash has low quality."""

    @property
    def columns(self) -> frozenset[str]:
        """The column to compare and the columns of the score."""
        by, best = self.dedup.by, self.dedup.best
        keys = HashKeys(by, best, 1, 0, 1) if self.dedup.distance else DedupKeys(by, best, 1, 0, 1)
        return keys.columns

    def check(self, schema: pa.Schema) -> None:
        """Check that values can be compared and that the score is a number. Raises ExpressionError."""
        name = self.dedup.by
        if self.dedup.best is not None:
            Expression(self.dedup.best).check(schema, "number")
        if name not in schema.names:
            hint = "; to compare embeddings, add model: ALIAS" if name in EMBEDDINGS else ""
            raise ExpressionError(f"there is no column {name!r}{hint}" if hint else no_column(schema, name))
        if not can_be_key(kind := schema.field(name).type):
            raise ExpressionError(f"column {name!r} is {kind}, and dedup cannot compare such values")
        if self.dedup.distance:
            require_hashes(schema, [name])

    def run(self, selector: Selector, number: int) -> None:
        """Find equal values or, if the step has a distance, similar hashes."""
        if self.dedup.distance:
            self.not_compared, self.low_quality = count_unusual(selector, [self.dedup.by])
            self.clusters = drop_near_duplicates(selector, number, self.dedup)
            return
        groups, self.not_compared = exact_duplicates(selector, number, self.dedup)
        tasks = selector.tasks
        candidates = tasks.get(tasks.map(largest, [(each,) for each in groups]))
        self.clusters = largest(np.concatenate([np.zeros(0, DUPLICATE_GROUP), *candidates]))

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """Add to the report the largest groups, and the numbers of rows that were not compared, or only in part."""
        found = {"largest_clusters": list(described(selector, self.clusters)), "not_compared": self.not_compared}
        return report.model_copy(update={**found, "low_quality": self.low_quality})


def exact_duplicates(
    selector: Selector,
    number: int,
    step: Dedup,
    merge: Callable[..., Sequence[Array]] = merge_duplicates,
    before: Sequence[object] = (),
) -> tuple[list[Handle[Array]], int]:
    """Find exact duplicates and let the next scan drop them. Returns (handles of the DUPLICATE_GROUPs, number of rows
    without a value).

    `merge` decides which rows to drop; it receives `before` as its first arguments.
    """
    groups: list[Handle[Array]] = []
    duplicates: list[list[Handle[RowIndices] | RowIndices]] = [[] for _ in selector.chunks]
    for keys in _partitions(selector, step):
        *parts, without = zip(*selector.scan(keys), strict=True)
        calls = [(*before, selector.chunk_starts, *part) for part in parts]
        for group, *dropped in selector.tasks.map_split(merge, calls, outputs=1 + len(selector.chunks)):
            groups.append(group)
            for of_chunk, rows in zip(duplicates, dropped, strict=True):
                of_chunk.append(rows)
    selector.drop(number, duplicates)
    return groups, sum(int(each.sum()) for each in selector.tasks.get(without))


def _partitions(selector: Selector, step: Dedup) -> list[DedupKeys]:
    """The key partitions to collect in each scan: as many as fit into the memory of the tasks."""
    num_rows, memory_bytes = selector.num_rows, selector.tasks.memory_bytes
    partitions = max(1, math.ceil(num_rows / PARTITION_ROWS))
    per_scan = max(1, int(partitions * memory_bytes // max(1, num_rows * DEDUP_KEY.itemsize)))
    return [
        DedupKeys(step.by, step.best, partitions, first, min(first + per_scan, partitions))
        for first in range(0, partitions, per_scan)
    ]
