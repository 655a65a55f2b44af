"""Finds what a purge would change, without changing anything.

Reads the columns that are compared, and the embeddings of withdrawn rows only if a score could contain them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pairmill.pipeline.columns.added_columns import columns_done
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.dataset.parquet import read_schema, read_table
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.keys import digest
from pairmill.pipeline.purge.ledger import Ledger, with_values, withdrawn_vectors
from pairmill.pipeline.purge.matching import Matcher
from pairmill.pipeline.purge.scan import SHARDS_PER_CALL, Hit, hit_of, read_each, shared, tables_of
from pairmill.pipeline.purge.side_columns import SideColumns, scores_with
from pairmill.pipeline.purge.subsets import affected_subsets
from pairmill.pipeline.purge.witness import vector_digests
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.pairs import is_embedding

_NAMES = pa.schema([("row_id", pa.string()), ("uid", pa.string())])


@dataclass(frozen=True)
class Preview:
    """What a purge would withdraw, and from what."""

    hits: Sequence[Hit]
    matched: DigestSet
    """The hashes of the listed values that these rows have."""
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
    generations, matcher, matched = committed(store), Matcher(ledger), DigestSet.of([])
    while True:
        hits, rows = _search(store, matcher, sorted(generations.items()), tasks)
        matched = DigestSet.union([matched, *(hit.matched for hit in hits)])
        before, ledger = len(ledger.uids), _with_rows(ledger, rows)
        if len(ledger.uids) == before:
            break
        matcher = Matcher(ledger, by_uid_only=True)

    def vectors() -> DigestSet:
        return DigestSet.union([withdrawn_vectors(store), *_vectors(store, matcher, hits, tasks)])

    scores = scores_with(store, ledger.uids, vectors, lost_pairs=any(hit.pairs for hit in hits))
    return Preview(
        hits=hits,
        matched=matched,
        subset_rows=affected_subsets(store, ledger, generations, {hit.shard for hit in hits if hit.pairs}),
        scores=scores,
        score_shards={name: len(columns_done(store, name)) for name in scores},
    )


def _with_rows(ledger: Ledger, rows: pa.Table) -> Ledger:
    """The ledger as it would be after these rows (_NAMES) were withdrawn."""
    uids = [digest("uid", uid.encode()) for uid in rows["uid"].to_pylist()]
    return replace(with_values(ledger, {"uid": uids}), row_ids=ledger.row_ids.union(rows["row_id"].to_pylist()))


def _search(
    store: Store, matcher: Matcher, shards: Sequence[tuple[int, int]], tasks: Tasks
) -> tuple[list[Hit], pa.Table]:
    """The hits in these shards (shard, generation), and the withdrawn rows (_NAMES)."""
    handle = shared(tasks, matcher.prepared())
    calls = [(store, handle, shards[at : at + SHARDS_PER_CALL]) for at in range(0, len(shards), SHARDS_PER_CALL)]
    found = list(tasks.get(tasks.map(_search_shards, calls)))
    rows = pa.concat_tables([_NAMES.empty_table(), *(rows for _, rows in found)])
    return [hit for hits, _ in found for hit in hits], rows


def _search_shards(store: Store, matcher: Matcher, shards: Sequence[tuple[int, int]]) -> tuple[list[Hit], pa.Table]:
    found = read_each(store, shards, lambda manifest: _search_shard(store, matcher, manifest))
    rows = [table for _, tables in found for table in tables]
    return [hit for hit, tables in found if tables], pa.concat_tables([_NAMES.empty_table(), *rows])


def _search_shard(store: Store, matcher: Matcher, manifest: ShardManifest) -> tuple[Hit, list[pa.Table]]:
    hit, masks = hit_of(matcher, manifest, tables_of(store, matcher, manifest))
    gone = {manifest.files[name].path: pa.array(mask) for name, mask in masks.items() if mask.any()}
    tables = [read_table(store, path, _NAMES.names).filter(rows) for path, rows in gone.items()]
    return hit, [table.select(_NAMES.names).cast(_NAMES) for table in tables]


def _vectors(store: Store, matcher: Matcher, hits: Sequence[Hit], tasks: Tasks) -> Iterator[DigestSet]:
    """The digests of the embeddings of the withdrawn rows."""
    handle, shards = shared(tasks, matcher.prepared()), [(hit.shard, hit.generation) for hit in hits if hit.pairs]
    calls = [(store, handle, shards[at : at + SHARDS_PER_CALL]) for at in range(0, len(shards), SHARDS_PER_CALL)]
    return tasks.get(tasks.map(_vectors_of_shards, calls))


def _vectors_of_shards(store: Store, matcher: Matcher, shards: Sequence[tuple[int, int]]) -> DigestSet:
    return DigestSet.union(read_each(store, shards, lambda manifest: _vectors_of_shard(store, matcher, manifest)))


def _vectors_of_shard(store: Store, matcher: Matcher, manifest: ShardManifest) -> DigestSet:
    _, masks = hit_of(matcher, manifest, tables_of(store, matcher, manifest))
    gone, found = pa.array(masks["pairs"]), list[bytes | None]()
    for path in (manifest.files["pairs"].path, *SideColumns.of(store, manifest).paths):
        names = [field.name for field in read_schema(store, path) if is_embedding(field)]
        for column in read_table(store, path, names).filter(gone).columns if names else ():
            found += vector_digests(column)
    return DigestSet.of(each for each in found if each is not None)
