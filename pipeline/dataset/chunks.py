"""Defines the chunk, the unit of work of a select job: a few narrow columns of dozens of finished shards."""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.integrity import check_file
from pairmill.pipeline.dataset.manifests import may_be_superseded, read_columns_manifest, read_manifest, see_verify
from pairmill.pipeline.dataset.parquet import read_schema, read_table
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.pairs import embedding_type, is_embedding

CHUNK_ROWS = 250_000
"""Rows per task: enough to outweigh a task's overhead, but few enough to fit in a worker's memory."""
MAX_CHUNKS = 512
"""Maximum number of chunks, because each dedup step creates chunks x partitions objects."""
_READERS = 16


class ColumnsError(PairmillError, ValueError):
    """The columns of an added model do not match the shard's pairs file. The message says what to do."""


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """The files of a shard's newest generation, with names relative to the dataset."""

    shard: int
    generation: int
    num_rows: int
    """Rows of the pairs file."""
    pairs: str
    pairs_blake2b: str
    columns: tuple[str, ...] = ()
    """Files with the columns of added models. They have the same rows as `pairs`."""
    columns_blake2b: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """Consecutive shards. Row indices count the rows of all pairs files of the dataset, in shard order."""

    store: Store
    shards: tuple[ShardFiles, ...]
    first_row_index: int = 0

    @cached_property
    def num_rows(self) -> int:
        """Total number of rows in the shards."""
        return sum(shard.num_rows for shard in self.shards)

    def read(self, shard: ShardFiles, columns: frozenset[str]) -> pa.Table:
        """The given columns of a shard, from the files that contain them."""
        fields, found = list[pa.Field](), dict[str, pa.ChunkedArray]()
        for name in (shard.pairs, *shard.columns):
            if missing := columns - found.keys():
                table = read_table(self.store, name, missing)
                fields += table.schema
                found |= dict(zip(table.column_names, table.columns, strict=True))
        unified = _unified(fields)
        arrays = [
            array if array.type == kind else array.cast(kind)
            for array, kind in zip(found.values(), unified.types, strict=True)
        ]
        return pa.table(arrays, schema=unified)

    def check(self, shard: ShardFiles) -> None:
        """Compare the files of a shard with their checksums. Raises DamagedFileError."""
        for name, digest in (
            (shard.pairs, shard.pairs_blake2b),
            *zip(shard.columns, shard.columns_blake2b, strict=True),
        ):
            check_file(self.store, name, digest)

    def read_rows(self, row_indices: npt.NDArray[np.int64], columns: frozenset[str]) -> pa.Table:
        """The given columns of at least one row of this chunk; reads only the shards that contain them. `row_indices`:
        ascending; shape (rows,).
        """
        tables = []
        for shard, span in self.spans():
            start = self.first_row_index + span.start
            first, end = np.searchsorted(row_indices, [start, start + shard.num_rows])
            if first < end:
                tables.append(self.read(shard, columns).take(pa.array(row_indices[first:end] - start)))
        return pa.concat_tables(tables)

    def schema(self) -> pa.Schema:
        """All columns of the first shard. The other shards have the same columns."""
        fields: dict[str, pa.Field] = {}
        for name in (self.shards[0].pairs, *self.shards[0].columns):
            for field in read_schema(self.store, name):
                fields.setdefault(field.name, field)
        return _unified(fields.values())

    def spans(self) -> Iterator[tuple[ShardFiles, slice]]:
        """Each shard, with its slice of the chunk's rows."""
        start = 0
        for shard in self.shards:
            yield shard, slice(start, start + shard.num_rows)
            start += shard.num_rows


def _unified(fields: Collection[pa.Field]) -> pa.Schema:
    """The schema of these columns in all shards: shards from earlier versions can differ in what may be null."""
    types = [embedding_type(field.type.list_size) if is_embedding(field) else field.type for field in fields]
    return pa.schema([pa.field(field.name, kind) for field, kind in zip(fields, types, strict=True)])


def describe(store: Store, shards: Sequence[tuple[int, int]], aliases: Sequence[str]) -> Chunk:
    """The chunk of the given (shard, generation) pairs, with the given added models. Raises ColumnsError, and
    SupersededError if a retry or a purge has replaced one of them in the meantime."""
    with ThreadPoolExecutor(_READERS) as readers:
        run = readers.map if store.remote else map  # a local manifest takes less time than another thread
        return Chunk(store, tuple(run(lambda shard: _shard_files(store, shard[0], shard[1], aliases), shards)))


def _shard_files(store: Store, shard: int, generation: int, aliases: Sequence[str]) -> ShardFiles:
    name = manifest_name(shard, generation)
    with may_be_superseded(store, shard, generation):
        manifest = read_manifest(store, name)
        records = [read_columns_manifest(store, alias, name) for alias in aliases]
    pairs = manifest.files["pairs"]
    columns = []
    for alias, record in zip(aliases, records, strict=True):
        if record.pairs_blake2b != pairs.blake2b:  # the shard has been rebuilt under the same number
            where = store.path(f"columns/{alias}/manifests/{name}")
            raise ColumnsError(f"{where} belongs to another pairs file; {see_verify(store)}")
        columns.append(record.file)
    paths, digests = (tuple(getattr(file, name) for file in columns) for name in ("path", "blake2b"))
    return ShardFiles(shard, generation, manifest.pairs, pairs.path, pairs.blake2b, paths, digests)
