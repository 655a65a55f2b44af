"""Reads a whole dataset once, shard by shard, to prepare a score."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import describe
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.kind import ScoreError
from pairmill.pipeline.select.tasks import Tasks

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ShardReader:
    """Reads some columns of a shard. Consists of plain values, so it can be sent to workers."""

    store: Store
    sources: tuple[str, ...]
    columns: frozenset[str]

    def read(self, shard: int, generation: int) -> pa.Table:
        """Read these columns of all rows of the shard."""
        chunk = describe(self.store, [(shard, generation)], self.sources)
        return chunk.read(chunk.shards[0], self.columns)


def shard_reader(snapshot: Snapshot, columns: frozenset[str]) -> ShardReader:
    """A reader of these columns. Raises ScoreError if the dataset lacks one of them."""
    for column in sorted(columns - set(snapshot.schema.names)):
        raise ScoreError(snapshot.added.missing(column) or f"{snapshot.store.root} has no column {column!r}")
    return ShardReader(snapshot.store, snapshot.added.with_columns(columns), columns)


def scan(
    snapshot: Snapshot,
    columns: frozenset[str],
    tasks: Tasks,
    function: Callable[..., _Result],
    arguments: Sequence[Any] = (),
) -> Iterator[_Result]:
    """The results of `function(reader, shard, generation, *arguments)` for all shards, in order.

    The function must be pure and at the top level of a module.
    """
    reader = shard_reader(snapshot, columns)
    calls = [(reader, *shard, *arguments) for shard in snapshot.generations]
    return tasks.get(tasks.map(function, calls))
