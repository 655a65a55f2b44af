"""What a choice reads: shards of a finished dataset, some dozens to a chunk, and of their files only narrow columns."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.shards import read_manifest
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.manifest import ColumnsManifest, manifest_name

CHUNK_ROWS = 250_000
"""Rows per task: large beside a task's own cost, small beside a worker's memory."""
_READERS = 16
MAX_CHUNKS = 512
"""Every dedup makes chunks x partitions objects."""


class ColumnsError(PairmillError, ValueError):
    """An added model's columns do not belong to the shard that they stand beside; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """One shard in its newest generation."""

    shard: int
    generation: int
    num_rows: int
    """In `pairs/`."""
    pairs: str
    """Names are relative to the dataset."""
    pairs_blake2b: str
    columns: tuple[str, ...] = ()
    """Files with added models' columns, row for row beside `pairs`."""


@dataclass(frozen=True)
class Chunk:
    """Neighbouring shards. A row's `place` is its number among all rows of the dataset's pairs, in order of shard."""

    store: Store
    shards: tuple[ShardFiles, ...]
    first_place: int = 0

    @cached_property
    def num_rows(self) -> int:
        """Of all its shards."""
        return sum(shard.num_rows for shard in self.shards)

    def read(self, shard: ShardFiles, columns: frozenset[str]) -> pa.Table:
        """These columns of a shard, wherever they stand."""
        found: dict[str, pa.ChunkedArray] = {}
        for name in (shard.pairs, *shard.columns):
            if wanted := columns - found.keys():
                with self.store.open_arrow(name) as file:
                    parquet = pq.ParquetFile(file, pre_buffer=self.store.remote)
                    table = parquet.read(columns=sorted(wanted & set(parquet.schema_arrow.names)))
                found |= dict(zip(table.column_names, table.columns, strict=True))
        return pa.table(found)

    def read_row(self, place: int, columns: frozenset[str]) -> dict[str, Any]:
        """These columns of one row, by its place."""
        for shard, span in self.spans():
            if place - self.first_place < span.stop:
                row = self.read(shard, columns).slice(place - self.first_place - span.start, 1)
                return dict(row.to_pylist()[0])
        raise IndexError(place)

    def schema(self) -> pa.Schema:
        """All columns of the first shard, which are those of all."""
        fields: dict[str, pa.Field] = {}
        for name in (self.shards[0].pairs, *self.shards[0].columns):
            with self.store.open_arrow(name) as file:
                fields = {field.name: field for field in pq.ParquetFile(file).schema_arrow} | fields
        return pa.schema(fields.values())

    def spans(self) -> Iterator[tuple[ShardFiles, slice]]:
        """Each shard, with where its rows are among the chunk's."""
        start = 0
        for shard in self.shards:
            yield shard, slice(start, start + shard.num_rows)
            start += shard.num_rows


def describe(store: Store, shards: Sequence[tuple[int, int]], aliases: Sequence[str]) -> Chunk:
    """The chunk of these (shard, generation), with the columns of these added models."""
    with ThreadPoolExecutor(_READERS if store.remote else 1) as readers:
        return Chunk(store, tuple(readers.map(lambda shard: _describe(store, shard[0], shard[1], aliases), shards)))


def _describe(store: Store, shard: int, generation: int, aliases: Sequence[str]) -> ShardFiles:
    name = manifest_name(shard, generation)
    manifest = read_manifest(store, name)
    pairs = manifest.files["pairs"]
    columns = []
    for alias in aliases:
        record = ColumnsManifest.model_validate_json(store.read(f"columns/{alias}/manifests/{name}"))
        if record.pairs_blake2b != pairs.blake2b:  # the shard was made again under the same number
            where = store.path(f"columns/{alias}/manifests/{name}")
            raise ColumnsError(f"{where} goes with another pairs file; delete it and run embed --add-model again")
        columns.append(record.file.path)
    return ShardFiles(shard, generation, manifest.pairs, pairs.path, pairs.blake2b, tuple(columns))
