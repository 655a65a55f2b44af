"""Finds the shards with withdrawn rows, from a few narrow columns of all shards."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifest
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.purge.matching import Matcher
from pairmill.pipeline.purge.side_columns import SideColumns
from pairmill.pipeline.select.tasks import Handle, Tasks
from pairmill.schemas.manifest import manifest_name

SHARDS_PER_CALL = 64
_READERS = 16

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
    with ThreadPoolExecutor(_READERS if store.remote else 1) as readers:
        found = list(readers.map(lambda shard: _scan_shard(store, matcher, *shard), shards))
    return [hit for hit in found if hit.pairs or hit.rejects]


def _scan_shard(store: Store, matcher: Matcher, shard: int, generation: int) -> Hit:
    manifest = read_manifest(store, manifest_name(shard, generation))
    found = {"pairs": 0, "rejects": 0}
    for name in ("pairs", "rejects"):
        if name in manifest.files:
            table = read_table(store, manifest.files[name].path, matcher.columns)
            if name == "pairs" and matcher.columns - set(table.column_names):
                table = SideColumns.of(store, manifest).beside(table, matcher.columns)
            found[name] = int(np.count_nonzero(matcher.mask(table)))
    return Hit(shard, generation, found["pairs"], found["rejects"])
