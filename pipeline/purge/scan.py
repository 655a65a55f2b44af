"""Finds the shards with withdrawn rows, from a few narrow columns of all shards."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifest
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.known.keys import PDQ
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.matching import Mask, Matcher
from pairmill.pipeline.purge.pdq import has_hash
from pairmill.pipeline.purge.side_columns import SideColumns
from pairmill.pipeline.select.tasks import Handle, Tasks
from pairmill.schemas.manifest import ShardManifest, manifest_name

SHARDS_PER_CALL = 64
_READERS = 16
RowFile: TypeAlias = Literal["pairs", "rejects"]
ROW_FILES: tuple[RowFile, ...] = ("pairs", "rejects")
"""The files of a shard that contain rows."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Hit:
    """The number of withdrawn rows in a shard."""

    shard: int
    generation: int
    pairs: int
    """The number of withdrawn pairs."""
    rejects: int
    matched: DigestSet = field(compare=False)
    """The hashes of the listed values that these rows have: see `Matcher.matched`."""


def scan(store: Store, matcher: Matcher, generations: Mapping[int, int], tasks: Tasks) -> list[Hit]:
    """The shards (shard -> generation) with withdrawn rows, in order."""
    shards = sorted(generations.items())
    handle = shared(tasks, matcher.prepared())
    calls = [
        (store, handle, shards[start : start + SHARDS_PER_CALL]) for start in range(0, len(shards), SHARDS_PER_CALL)
    ]
    return [hit for hits in tasks.get(tasks.map(_scan_shards, calls)) for hit in hits]


def shared(tasks: Tasks, value: _T) -> Handle[_T]:
    """A value for many calls, sent once to each machine."""
    return tasks.map(_itself, [(value,)])[0]


def _itself(value: _T) -> _T:
    return value


def _scan_shards(store: Store, matcher: Matcher, shards: Sequence[tuple[int, int]]) -> list[Hit]:
    found = read_each(store, shards, lambda manifest: hit_of(matcher, manifest, tables_of(store, matcher, manifest))[0])
    return [hit for hit in found if hit.pairs or hit.rejects]


def read_each(store: Store, shards: Sequence[tuple[int, int]], read: Callable[[ShardManifest], _T]) -> list[_T]:
    """Call `read` with the manifest of each (shard, generation), several at a time if the store is remote."""
    with ThreadPoolExecutor(_READERS if store.remote else 1) as readers:
        return list(readers.map(lambda shard: read(read_manifest(store, manifest_name(*shard))), shards))


def count_without_hash(store: Store, generations: Mapping[int, int], tasks: Tasks) -> int:
    """The number of pairs of these shards (shard -> generation) that have no readable PDQ hash to compare."""
    shards = sorted(generations.items())
    calls = [(store, shards[start : start + SHARDS_PER_CALL]) for start in range(0, len(shards), SHARDS_PER_CALL)]
    return sum(tasks.get(tasks.map(_count_without_hash, calls)))


def _count_without_hash(store: Store, shards: Sequence[tuple[int, int]]) -> int:
    def count(manifest: ShardManifest) -> int:
        table = _with_added(store, manifest, read_table(store, manifest.files["pairs"].path, {"row_id", PDQ}), {PDQ})
        return int(np.count_nonzero(~has_hash(table)))

    return sum(read_each(store, shards, count))


def tables_of(store: Store, matcher: Matcher, manifest: ShardManifest) -> dict[RowFile, pa.Table]:
    """The rows of the file `pairs` of a shard, and of `rejects` if there is one, with the columns to compare."""
    tables: dict[RowFile, pa.Table] = {}
    for name in ROW_FILES:
        if name in manifest.files:
            tables[name] = read_table(store, manifest.files[name].path, matcher.columns)
    tables["pairs"] = _with_added(store, manifest, tables["pairs"], matcher.columns)
    return tables


def _with_added(store: Store, manifest: ShardManifest, pairs: pa.Table, names: Collection[str]) -> pa.Table:
    """The pairs with the columns among `names` that were added to them."""
    return SideColumns.of(store, manifest).beside(pairs, names) if set(names) - set(pairs.column_names) else pairs


def hit_of(
    matcher: Matcher, manifest: ShardManifest, tables: Mapping[RowFile, pa.Table]
) -> tuple[Hit, dict[RowFile, Mask]]:
    """The withdrawn rows among `tables_of` a shard: their numbers, and which of the rows they are."""
    masks = {name: matcher.mask(table) for name, table in tables.items()}
    pairs, rejects = (int(np.count_nonzero(masks.get(name, ()))) for name in ROW_FILES)
    matched = [matcher.matched(tables[name].filter(pa.array(mask))) for name, mask in masks.items() if mask.any()]
    return Hit(manifest.shard, manifest.generation, pairs, rejects, DigestSet.union(matched)), masks
