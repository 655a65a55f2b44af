"""Finds what a purge would change, without changing anything."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pairmill.pipeline.columns.added_columns import columns_done
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed, read_manifest
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.ledger import Ledger, with_values
from pairmill.pipeline.purge.matching import Matcher
from pairmill.pipeline.purge.scan import SHARDS_PER_CALL, Hit, scan, shared
from pairmill.pipeline.purge.side_columns import SideColumns, scores_with
from pairmill.pipeline.purge.subsets import affected_subsets
from pairmill.pipeline.purge.witness import witnesses
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.purge import WITHDRAWN_SCHEMA


@dataclass(frozen=True)
class Preview:
    """What a purge would withdraw, and from what."""

    hits: Sequence[Hit]
    subset_rows: Mapping[str, int]
    """Name of each subset that would be rewritten -> the number of its rows that would be withdrawn."""
    scores: Mapping[str, str]
    """Name of each score that would be deleted -> its settings."""
    score_shards: Mapping[str, int]
    """Name of each score that would be deleted -> the number of shards that have it."""


def preview(store: Store, ledger: Ledger, tasks: Tasks) -> Preview:
    """What a purge with this ledger would do.

    Like the purge itself, repeats the search with the uids of the rows that were found, because other shards can have
    the same pairs without a value that matches.
    """
    generations, rows = committed(store), WITHDRAWN_SCHEMA.empty_table()
    while True:
        hits = scan(store, Matcher(ledger), generations, tasks)
        found = pa.concat_tables([WITHDRAWN_SCHEMA.empty_table(), *_rows_of(store, Matcher(ledger), hits, tasks)])
        if found.num_rows == rows.num_rows:
            break
        rows, ledger = found, with_values(ledger, {"uid": found["uid"].to_pylist()})
    vectors = rows["vectors"].combine_chunks().flatten().to_pylist()
    scores = scores_with(store, ledger.uids, DigestSet.of(vectors)) if hits else {}
    return Preview(
        hits=hits,
        subset_rows=affected_subsets(store, ledger.uids, {hit.shard for hit in hits if hit.pairs}),
        scores=scores,
        score_shards={name: len(columns_done(store, name)) for name in scores},
    )


def _rows_of(store: Store, matcher: Matcher, hits: Sequence[Hit], tasks: Tasks) -> Iterator[pa.Table]:
    """The withdrawn rows of these shards (WITHDRAWN_SCHEMA), without their pictures."""
    shards, handle = [(hit.shard, hit.generation) for hit in hits], shared(tasks, matcher.prepared())
    starts = range(0, len(shards), SHARDS_PER_CALL)
    return tasks.get(tasks.map(_withdrawn, [(store, handle, shards[at : at + SHARDS_PER_CALL]) for at in starts]))


def _withdrawn(store: Store, matcher: Matcher, shards: Sequence[tuple[int, int]]) -> pa.Table:
    return pa.concat_tables([table for shard in shards for table in _withdrawn_of_shard(store, matcher, *shard)])


def _withdrawn_of_shard(store: Store, matcher: Matcher, shard: int, generation: int) -> Iterator[pa.Table]:
    manifest = read_manifest(store, manifest_name(shard, generation))
    pairs, side = read_table(store, manifest.files["pairs"].path), SideColumns.of(store, manifest)
    gone = matcher.mask(side.beside(pairs, matcher.columns))
    yield witnesses(store, pairs.filter(pa.array(gone)).drop_columns(["image_tar"]), side.read(gone))
    if "rejects" in manifest.files:
        rejects = read_table(store, manifest.files["rejects"].path)
        rejected: np.ndarray = matcher.mask(rejects)
        yield witnesses(store, rejects.filter(pa.array(rejected)), [])
