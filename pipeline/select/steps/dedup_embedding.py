"""The step `dedup` with a model: keeps one row of each group of rows with similar embeddings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.dataset.subset import NOT_DROPPED
from pairmill.pipeline.select.duplicates import DUPLICATE_GROUP, largest
from pairmill.pipeline.select.expression_errors import ExpressionError
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.outputs import Array, NoOutput
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.semantic.centers import SAMPLES_PER_CLUSTER, find_centers, num_clusters
from pairmill.pipeline.select.semantic.passes import Rows, SampledVectors, assign, gather, margin_of, member_dtype
from pairmill.pipeline.select.semantic.resolve import (
    find_edges,
    largest_groups,
    left_over,
    let_go,
    let_stay,
    no_states,
    rows_that_go,
)
from pairmill.pipeline.select.semantic.vectors import Compared, Vectors
from pairmill.pipeline.select.steps.described import described
from pairmill.pipeline.select.tasks import Handle, Tasks
from pairmill.schemas.pairs import is_embedding
from pairmill.schemas.select_steps import DEFAULT_THRESHOLD, Dedup
from pairmill.schemas.subset import StepReport

PARTITION_BYTES = 1 << 26
"""Maximum size of the members that one call compares, unless they are a single cluster."""
_BUCKETS = 16
MAX_ROUNDS = 32
"""Maximum number of rounds. Each round decides most of the open rows, so a handful is enough. Rows that are still open
after the last round stay."""

Handles = list[Handle[Any]]
"""Handles of results, one per chunk."""
Sizes = npt.NDArray[np.int64]
"""Number of rows of each cluster."""


@dataclass
class EmbeddingDedupStep:
    """Keeps the best row of each group of rows with similar embeddings."""

    rows: Rows
    threshold: float
    dim: int = 0
    clusters: Array = field(default_factory=lambda: np.zeros(0, DUPLICATE_GROUP))
    """The largest groups; shape (groups,)."""
    not_compared: int = 0

    @classmethod
    def of(cls, dedup: Dedup, model: str) -> "EmbeddingDedupStep":
        """The step for a job file's `dedup`. `model`: alias of the model."""
        threshold = DEFAULT_THRESHOLD if dedup.threshold is None else dedup.threshold
        return cls(Rows(Vectors(cast(Compared, dedup.by), model), dedup.best), threshold)

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the embeddings and the score."""
        return self.rows.columns

    def check(self, schema: pa.Schema) -> None:
        """Check that the model has embeddings and that the score is a number. Raises ExpressionError."""
        if self.rows.best is not None:
            Expression(self.rows.best).check(schema, "number")
        for name in self.rows.vectors.names:
            if name not in schema.names or not is_embedding(schema.field(name)):
                models = [each.name.removeprefix("image_embedding_") for each in schema if is_embedding(each)]
                known = sorted({each for each in models if not each.startswith("text_embedding_")})
                there = f"its models are {', '.join(known)}" if known else "it has no embeddings"
                raise ExpressionError(f"the dataset has no model {self.rows.vectors.model!r}: {there}")
        self.dim = schema.field(self.rows.vectors.names[0]).type.list_size

    def run(self, selector: Selector, number: int) -> None:
        """Cut the embeddings into clusters, compare the rows of each, and drop rows that resemble a better row."""
        selector.scan(NoOutput())
        centers = self._centers(selector)
        margin = margin_of(self.threshold)
        calls = [(*self._chunk(selector, at), margin, centers) for at in range(len(selector.chunks))]
        assigned = selector.tasks.map_split(assign, calls, outputs=4)
        memberships, sizes, equal, unusable = _columns(assigned)
        self.not_compared = sum(int(each[0]) for each in selector.tasks.get(unusable))
        gone = self._compare(selector, memberships, self._total(selector, sizes))
        self._drop(selector, number, equal, gone)

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """Add to the report the largest groups, and the number of rows that were not compared."""
        found = {"largest_clusters": list(described(selector, self.clusters)), "not_compared": self.not_compared}
        return report.model_copy(update=found)

    def _chunk(self, selector: Selector, at: int) -> tuple[Any, ...]:
        return selector.chunks[at], selector.drop_step[at], self.rows

    def _centers(self, selector: Selector) -> Handle[Any]:
        """The centers of the clusters, from a sample of the remaining rows."""
        remaining = selector.counts[NOT_DROPPED]
        clusters, samples = num_clusters(remaining), []
        if clusters > 1:
            fraction = clusters * SAMPLES_PER_CLUSTER / remaining
            samples = [part[0] for part in selector.scan(SampledVectors(self.rows.vectors, self.dim, fraction))]
        dim = self.dim * len(self.rows.vectors.names)
        return selector.tasks.map(find_centers, [(clusters, dim, *samples)])[0]

    def _compare(self, selector: Selector, memberships: Handles, sizes: Sizes) -> list[Handles]:
        """For each chunk, the EDGEs of the rows to drop, one array per round."""
        tasks, starts = selector.tasks, selector.chunk_starts
        states: Handles = list(tasks.map(no_states, [(chunk.num_rows,) for chunk in selector.chunks]))
        gone: list[Handles] = [[] for _ in selector.chunks]
        for number in range(MAX_ROUNDS):
            edges = self._edges(selector, memberships, sizes, guests_first=number > 0)
            merged, states = _map(tasks, let_stay, 2, [starts, memberships, states], edges)
            every = [(starts, *states)] * len(starts)
            goes, states = _map(tasks, let_go, 2, [merged, range(len(starts))], every)
            for of_chunk, each in zip(gone, goes, strict=True):
                of_chunk.append(each)
            clusters = [len(sizes)] * len(starts)
            memberships, num_rows, num_open = _map(tasks, left_over, 3, [starts, memberships, states, clusters])
            is_open = self._total(selector, num_open) > 0
            if not is_open.any():
                break
            sizes = np.where(is_open, self._total(selector, num_rows), 0)
        return gone

    def _edges(self, selector: Selector, memberships: Handles, sizes: Sizes, guests_first: bool) -> list[Handles]:
        """For each chunk, the EDGEs that each partition found. Clusters of size 0 are left out."""
        tasks, num_chunks = selector.tasks, len(selector.chunks)
        found: list[Handles] = [[] for _ in range(num_chunks)]
        member_bytes = member_dtype(len(self.rows.vectors.names), self.dim).itemsize
        for bounds in _groups(sizes * member_bytes, tasks.memory_bytes // 2):  # members exist twice while they move
            wanted = sizes[bounds[0] : bounds[-1]] > 0
            if not wanted.any():
                continue
            calls = [
                (*self._chunk(selector, at), self.dim, bounds, wanted, memberships[at]) for at in range(num_chunks)
            ]
            members = _columns(tasks.map_split(gather, calls, outputs=len(bounds)))[1:]
            partitions = [(self.threshold, guests_first, selector.chunk_starts, *parts) for parts in members]
            results = tasks.map_split(find_edges, partitions, outputs=1 + num_chunks)
            del calls, members, partitions  # now only the pending calls keep the members alive
            for _ in tasks.get([result[0] for result in results]):
                pass  # wait, so that these members are freed before the next group is gathered
            for of_chunk, edges in zip(found, _columns(results)[1:], strict=True):
                of_chunk += edges
        return found

    def _total(self, selector: Selector, counts: Handles) -> Sizes:
        """The sum over all chunks, for each cluster."""
        total: Sizes = np.sum(list(selector.tasks.get(counts)), axis=0)
        return total

    def _drop(self, selector: Selector, number: int, equal: Handles, gone: Sequence[Handles]) -> None:
        """Let the next scan drop rows, and find the largest groups."""
        tasks = selector.tasks
        goes, *buckets = _map(tasks, rows_that_go, 1 + _BUCKETS, [equal, [_BUCKETS] * len(equal)], gone)
        self.clusters = largest(np.concatenate(list(tasks.get(tasks.map(largest_groups, buckets)))))
        selector.drop(number, [[each] for each in goes])


def _map(
    tasks: Tasks,
    function: Callable[..., Any],
    outputs: int,
    arguments: Sequence[Sequence[Any]],
    more: Sequence[Sequence[Any]] | None = None,
) -> list[Handles]:
    """Call a function once per chunk. Returns, for each output, its handles from all chunks.

    `arguments`: for each argument, its values for all chunks. `more`: for each chunk, any further arguments.
    """
    rest = more if more is not None else [()] * len(arguments[0])
    calls = [(*call, *each) for *call, each in zip(*arguments, rest, strict=True)]
    return _columns(tasks.map_split(function, calls, outputs))


def _columns(results: Sequence[Sequence[Handle[Any]]]) -> list[Handles]:
    """For each output, its handles from all calls."""
    return [list(each) for each in zip(*results, strict=True)]


def _groups(cluster_bytes: npt.NDArray[np.int64], memory_bytes: int) -> Iterator[npt.NDArray[np.int64]]:
    """For each group of partitions that fit into memory together, the first cluster of each partition, then the end of
    the last."""
    partitions = _cuts(cluster_bytes, PARTITION_BYTES)
    of_partitions = np.add.reduceat(cluster_bytes, partitions[:-1])
    groups = _cuts(of_partitions, memory_bytes)
    for first, last in pairwise(groups.tolist()):
        yield partitions[first : last + 1]


def _cuts(sizes: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.int64]:
    """Where to cut a list so that each part has a total size of at most `limit` or is a single item. Includes 0 and the
    end of the list."""
    cuts, total = [0], 0
    for position, size in enumerate(sizes.tolist()):
        if total and total + size > limit:
            cuts.append(position)
            total = 0
        total += size
    return np.array([*cuts, len(sizes)], np.int64)
