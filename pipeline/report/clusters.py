"""Finds rows in the largest groups of duplicates that the dedup steps of a subset found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.arrow import widened
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.known.embeddings import exact_cosines
from pairmill.pipeline.report.grids import Grid
from pairmill.pipeline.report.source import Source
from pairmill.pipeline.report.summary import Ref
from pairmill.pipeline.select.semantic.vectors import Compared, Vectors
from pairmill.schemas.select_steps import DEFAULT_THRESHOLD, Dedup
from pairmill.schemas.subset import Cluster, Subset

CLUSTERS_PER_STEP, ROWS_PER_CLUSTER = 4, 6
_BY_UID = Dedup(by="uid")


@dataclass
class _Group:
    """A group of duplicates, and those of its rows that were found."""

    step: int
    dedup: Dedup
    cluster: Cluster
    key: Any
    """The value that its rows are compared with: that of the row that was kept."""
    refs: list[Ref] = field(default_factory=list)


def largest_clusters(source: Source) -> Iterator[Grid]:
    """A grid for each of the largest groups: the row that was kept, then some of its duplicates in the shards that were
    read."""
    groups = list(_groups(source))
    if not groups:
        return
    for position, found in source.snapshot.map(lambda at: (at, _members(source, at, groups)), source.positions):
        for group, rows in zip(groups, found, strict=True):
            group.refs += [Ref("pairs", position, row) for row in rows]
    for group in groups:
        copies = counted(group.cluster.rows - 1, "duplicate")
        title = f"{copies} of {group.cluster.row_id}"
        about = f"The row that was kept, then some that dedup by {group.dedup.by} dropped{_how(group.dedup)}."
        yield Grid(title, about, group.refs[:ROWS_PER_CLUSTER])


def _groups(source: Source) -> Iterator[_Group]:
    """The largest groups of each dedup step, each with the row that was kept."""
    assert source.subset is not None
    for step, dedup in _dedups(source.subset):
        if not set(source.snapshot.schema.names).issuperset(
            _columns(dedup)
        ):  # newer shards lack the columns of an added model
            continue
        for cluster in source.subset.reports[step].largest_clusters[:CLUSTERS_PER_STEP]:
            if found := _row_of(source, cluster, dedup):
                ref, key = found
                yield _Group(step, dedup, cluster, key, [ref])


def _dedups(subset: Subset) -> Iterator[tuple[int, Dedup]]:
    """(number, step) of each dedup step. The second step of every subset is a dedup by uid."""
    yield 1, _BY_UID
    for number, step in enumerate(subset.steps, 2):
        if step.dedup:
            yield number, step.dedup


def _row_of(source: Source, cluster: Cluster, dedup: Dedup) -> tuple[Ref, Any] | None:
    """(the row that was kept, its key); None if the row no longer exists."""
    shard = int(cluster.row_id.partition(":")[0])
    shards = source.snapshot.chunk.shards
    position = next((at for at, each in enumerate(shards) if each.shard == shard), None)
    if position is None:
        return None
    table = source.snapshot.read(shards[position], list(dict.fromkeys(["row_id", *_columns(dedup)])))
    row = pc.index(table["row_id"], cluster.row_id).as_py()
    return None if row < 0 else (Ref("pairs", position, row), _key(table.slice(row, 1), dedup))


def _members(source: Source, position: int, groups: Sequence[_Group]) -> list[list[int]]:
    """For each group, its rows in this shard that its step dropped."""
    assert source.subset is not None
    steps = source.drop_steps[source.subset.name].get(position)
    if steps is None:
        return [[] for _ in groups]
    shard = source.snapshot.chunk.shards[position]
    table = source.snapshot.read(shard, sorted({name for group in groups for name in _columns(group.dedup)}))
    found = []
    for group in groups:
        rows = np.flatnonzero(steps == group.step)
        dropped = table.select(_columns(group.dedup)).take(pa.array(rows))
        found.append(rows[_is_duplicate(dropped, group)][:ROWS_PER_CLUSTER].tolist())
    return found


def _columns(dedup: Dedup) -> list[str]:
    """The columns that the step compares."""
    vectors = _vectors(dedup)
    return [dedup.by] if vectors is None else list(vectors.names)


def _vectors(dedup: Dedup) -> Vectors | None:
    """The embeddings that the step compares; None if it compares another column."""
    return None if dedup.model is None else Vectors(cast(Compared, dedup.by), dedup.model)


def _how(dedup: Dedup) -> str:
    return "" if dedup.model is None else f" (model {dedup.model}, cosine of {_threshold(dedup):g} or more)"


def _threshold(dedup: Dedup) -> float:
    return DEFAULT_THRESHOLD if dedup.threshold is None else dedup.threshold


def _key(row: pa.Table, dedup: Dedup) -> Any:
    """The value that the step compares for one row: a scalar, or its vectors as float16 [columns, 1, dim]."""
    vectors = _vectors(dedup)
    return row[dedup.by][0].as_py() if vectors is None else vectors.read(row)[0]


def _is_duplicate(table: pa.Table, group: _Group) -> Any:
    """Whether each row is a duplicate of the row that was kept; shape (rows,)."""
    if (vectors := _vectors(group.dedup)) is not None:
        found, usable = vectors.read(table)
        near = exact_cosines(found[:, usable], group.key) >= _threshold(group.dedup)
        usable[usable] = near.all(axis=0)
        return usable
    column = table[group.dedup.by]
    if group.dedup.distance:
        key, distance = int(group.key, 16), group.dedup.distance
        hashes = [None if value is None else int(value, 16) for value in column.to_pylist()]
        return np.array([each is not None and (each ^ key).bit_count() <= distance for each in hashes], bool)
    column = widened(column)
    equal = pc.equal(column, pa.scalar(group.key, column.type)).fill_null(False)
    return np.asarray(equal.combine_chunks().to_numpy(zero_copy_only=False), bool)
