"""Reads the values of a dataset's finished shards, or of a subset of it."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import Chunk, ShardFiles, describe
from pairmill.pipeline.dataset.manifests import read_manifest
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.dataset.subset import generations_digest, read_subset, selected_rows
from pairmill.pipeline.dataset.withdrawn import readable_shards
from pairmill.pipeline.known.keys import Keys, columns_of, hash_problem, row_keys
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.read_values import Tally
from pairmill.schemas.known import DEFAULT_KINDS, KnownRows, ValueKind
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.pairs import KEPT_STATUS

_READERS = 16
_Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class KnownDataset:
    """The committed shards of a dataset, and the choice of rows that count."""

    known: KnownRows
    chunk: Chunk

    @classmethod
    def open(cls, store: Store, known: KnownRows, columns: Sequence[str] | None = None) -> "KnownDataset":
        """Open the dataset in its current state. `columns`: the columns to read; None: the kinds of values in `known`.

        Raises UnfinishedPurgeError if a purge of the dataset is unfinished, and KnownError if no shard is finished, or
        if the dataset or one of its shards lacks a column.
        """
        shards = sorted(readable_shards(store).items())
        if not shards:
            raise KnownError(f"{store.root} has no finished shard yet")
        wanted = set(known.by or DEFAULT_KINDS if columns is None else columns)
        missing = wanted - set(describe(store, shards[:1], ()).schema().names)
        folders = store.folders("columns") if missing else ()
        added = [name for name in folders if _has(store, shards[0], name, missing)]
        try:
            chunk = describe(store, shards, added)
        except FileNotFoundError:
            raise KnownError(f"{store.root}: some shards have no {' or '.join(sorted(missing))} yet") from None
        if missing := wanted - set(chunk.schema().names):
            raise KnownError(f"{store.root} has no column {' or '.join(map(repr, sorted(missing)))}")
        if problem := hash_problem(chunk.schema(), wanted):
            raise KnownError(f"{store.root}: {problem}")
        return cls(known, chunk)

    @property
    def fingerprint(self) -> str:
        """A hash of the dataset's state: its shards and the choice of rows."""
        state = f"{generations_digest([self.chunk])} {self.known.rows} {self.known.subset or ''}"
        return hashlib.blake2b(state.encode(), digest_size=16).hexdigest()

    def keys(self, tally: Tally) -> Iterator[tuple[ValueKind, Keys]]:
        """(kind, keys) of its values, shard by shard. Raises KnownError if there are no values of a kind in `by`."""
        kinds = self.known.by or DEFAULT_KINDS
        for table in self.tables(frozenset[str]().union(*map(columns_of, kinds))):
            yield from _keys(table, kinds, tally)
        if unfinished := self._planned_shards() - len(self.chunk.shards):
            tally.unused["unfinished shard"] += unfinished
        for kind in self.known.by or ():
            if not tally.values[kind] and self.chunk.num_rows:
                raise KnownError(f"{self.chunk.store.root}: {kind} is null in all rows")

    def _planned_shards(self) -> int:
        store = self.chunk.store
        return sum(read_table(store, f"plan/{name}", ["shard"]).num_rows for name in store.list("plan"))

    def tables(self, columns: Collection[str]) -> Iterator[pa.Table]:
        """These columns of the rows that count, shard by shard. Rejects have only some columns; the others are null."""
        with ThreadPoolExecutor(_READERS if self.chunk.store.remote else 1) as readers:
            shards = self._shards()
            for start in range(0, len(shards), 4 * _READERS):
                some = shards[start : start + 4 * _READERS]
                yield from readers.map(lambda shard: self._read(shard[0], shard[1], columns), some)

    def _shards(self) -> Sequence[tuple[ShardFiles, _Bits | None]]:
        """Each shard, with packed bits that mark its rows in the subset; None without a subset."""
        if self.known.subset is None:
            return [(shard, None) for shard in self.chunk.shards]
        subset = read_subset(self.chunk.store, self.known.subset)
        return list(zip(self.chunk.shards, selected_rows(self.chunk, subset), strict=True))

    def _read(self, shard: ShardFiles, bits: _Bits | None, columns: Collection[str]) -> pa.Table:
        store = self.chunk.store
        table = self.chunk.read(shard, frozenset({*columns, "status"}))
        if bits is not None:
            return table.filter(pa.array(np.unpackbits(bits, count=table.num_rows).astype(np.bool_)))
        if self.known.rows == "kept":
            return table.filter(pc.equal(table["status"], KEPT_STATUS))
        if self.known.rows == "all":
            rejects = read_manifest(store, manifest_name(shard.shard, shard.generation)).files["rejects"].path
            return pa.concat_tables(
                [table, read_table(store, rejects, {*columns, "status"})], promote_options="default"
            )
        return table


def _has(store: Store, shard: tuple[int, int], added: str, columns: set[str]) -> bool:
    """Whether an added model or score has one of these columns in a shard."""
    try:
        return not columns.isdisjoint(describe(store, [shard], [added]).schema().names)
    except FileNotFoundError:
        return False


def _keys(table: pa.Table, kinds: Collection[ValueKind], tally: Tally) -> Iterator[tuple[ValueKind, Keys]]:
    for kind in kinds:
        keys, is_value = row_keys(kind, table)
        tally.values[kind] += int(is_value.sum())
        if empty := len(keys) - int(is_value.sum()):
            tally.unused[f"no {kind}"] += empty
        yield kind, keys[is_value]
