"""Finds the shards with withdrawn rows, from a few narrow columns of all shards."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifest
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.purge.matching import Mask, Matcher
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
    found = read_each(store, shards, lambda manifest: hit_of(manifest, masks_of(store, matcher, manifest)))
    return [hit for hit in found if hit.pairs or hit.rejects]


def read_each(store: Store, shards: Sequence[tuple[int, int]], read: Callable[[ShardManifest], _T]) -> list[_T]:
    """Call `read` with the manifest of each (shard, generation), several at a time if the store is remote."""
    with ThreadPoolExecutor(_READERS if store.remote else 1) as readers:
        return list(readers.map(lambda shard: read(read_manifest(store, manifest_name(*shard))), shards))


def masks_of(store: Store, matcher: Matcher, manifest: ShardManifest) -> dict[RowFile, Mask]:
    """For the file `pairs` of a shard, and `rejects` if there is one: which of its rows are withdrawn."""
    masks: dict[RowFile, Mask] = {}
    for name in ROW_FILES:
        if name in manifest.files:
            table = read_table(store, manifest.files[name].path, matcher.columns)
            if name == "pairs" and matcher.columns - set(table.column_names):
                table = SideColumns.of(store, manifest).beside(table, matcher.columns)
            masks[name] = matcher.mask(table)
    return masks


def hit_of(manifest: ShardManifest, masks: Mapping[RowFile, Mask]) -> Hit:
    """The numbers of withdrawn rows in `masks`."""
    pairs, rejects = (int(np.count_nonzero(masks.get(name, ()))) for name in ROW_FILES)
    return Hit(manifest.shard, manifest.generation, pairs, rejects)
