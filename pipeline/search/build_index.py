"""Builds the missing parts of an index, one at a time, and deletes outdated parts, for `pairmill index`."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import ShardFiles
from pairmill.pipeline.dataset.manifests import record_bytes
from pairmill.pipeline.reader.embeddings import Embeddings
from pairmill.pipeline.search.errors import SearchError
from pairmill.pipeline.search.part_files import index_folder, read_parts, shards_of_parts, stem_of
from pairmill.pipeline.search.vector_index import FAISS_VERSION, Halves, VectorIndex, sample_size
from pairmill.schemas.index import EmbeddingKind, IndexedShard, IndexPart
from pairmill.schemas.manifest import DataFile
from pairmill.schemas.version import VERSION

_SAMPLED_SHARDS = 32
_ABANDONED_S = 3_600
"""A run writes the record of a part right after its file. If a file older than this has no record, the run that wrote
it has died."""


@dataclass(frozen=True)
class IndexReport:
    """The contents of an index after `pairmill index`."""

    alias: str
    kind: EmbeddingKind
    shards: int
    unfinished_shards: int
    """Planned shards that were not finished yet and are not in the index."""
    rows: int
    embeddings: int
    """Rows with an embedding. Rows without one cannot be found."""
    parts: int
    parts_built: int
    """Parts that this run built. The others existed before."""
    parts_removed: int
    """Outdated parts that this run deleted."""
    num_bytes: int


def build_index(embeddings: Embeddings, on_step: OnStep = ignore_step) -> IndexReport:
    """Build missing or incomplete parts for the shards of the snapshot. If interrupted, call it again to resume.

    Needs memory for about twice the vectors of one part: 2 GB for a million embeddings of length 512. Raises
    SearchError if no row has an embedding.
    """
    store, folder = embeddings.snapshot.store, index_folder(embeddings)
    parts = {stem_of(embeddings, positions): positions for positions in shards_of_parts(embeddings)}
    before = _without_broken(store, folder, read_parts(store, folder))
    total = len(embeddings.snapshot.chunk.shards)
    done = sum(len(positions) for stem, positions in parts.items() if stem in before)
    records = {stem: part for stem, part in before.items() if stem in parts}
    for stem, positions in parts.items():
        if stem not in before:
            progress = _Progress(on_step, done, total)
            records[stem] = _build_part(embeddings, folder, stem, positions, progress)
            done += len(positions)
    if not any(part.num_embeddings for part in records.values()):
        what = "picture" if embeddings.kind == "image" else "caption"
        raise SearchError(f"no {what} in {store.root} has an embedding of {embeddings.alias!r}")
    outdated = before.keys() - records.keys()
    _remove(store, folder, outdated, records)
    return IndexReport(
        alias=embeddings.alias,
        kind=embeddings.kind,
        shards=total,
        unfinished_shards=embeddings.snapshot.unfinished_shards,
        rows=sum(part.num_rows for part in records.values()),
        embeddings=sum(part.num_embeddings for part in records.values()),
        parts=len(records),
        parts_built=len(records.keys() - before.keys()),
        parts_removed=len(outdated),
        num_bytes=sum(part.file.num_bytes for part in records.values()),
    )


@dataclass
class _Progress:
    """Reports progress as the number of shards indexed, across all parts."""

    on_step: OnStep
    done: int
    total: int

    def shard(self) -> None:
        self.done += 1
        self.on_step("indexing shards", self.done, self.total)


def _build_part(
    embeddings: Embeddings, folder: str, stem: str, positions: Sequence[int], progress: _Progress
) -> IndexPart:
    started = time.perf_counter()
    store, shards = embeddings.snapshot.store, [embeddings.snapshot.chunk.shards[each] for each in positions]
    index, indexed = index_shards(embeddings, shards, progress)
    with store.new_file() as file:
        index.write(file.name)
        digest, num_bytes = file_checksum(file)
        name = f"{folder}/{stem}.{uuid4().hex}.faiss"
        store.create_from(name, file)
    part = IndexPart(
        shards=indexed,
        dim=index.dim,
        lists=index.lists,
        file=DataFile(path=name, num_bytes=num_bytes, blake2b=digest),
        seconds=time.perf_counter() - started,
        versions={"pairmill": VERSION, "faiss": FAISS_VERSION},
    )
    if not store.create(f"{folder}/manifests/{stem}.json", record_bytes(part)):
        winner = read_parts(store, folder).get(stem, part)
        if winner.file.path != name:  # another run was faster
            store.delete(name)
        return winner
    return part


def index_shards(
    embeddings: Embeddings, shards: Sequence[ShardFiles], progress: _Progress | None = None
) -> tuple[VectorIndex, list[IndexedShard]]:
    """(an in-memory index of some shards, its contents for each shard). The ids number the rows of these shards."""
    num_rows = sum(shard.num_rows for shard in shards)
    index = VectorIndex.empty(embeddings.dim, num_rows, _sample(embeddings, shards, sample_size(num_rows)))
    start, indexed = 0, []
    for shard, (vectors, rows) in zip(shards, embeddings.snapshot.map(embeddings.read, shards), strict=True):
        index.add(vectors, start + rows)
        indexed.append(
            IndexedShard(
                shard=shard.shard,
                generation=shard.generation,
                num_rows=shard.num_rows,
                num_embeddings=len(rows),
                blake2b=embeddings.blake2b(shard),
            )
        )
        start += shard.num_rows
        if progress:
            progress.shard()
    return index, indexed


def _sample(embeddings: Embeddings, shards: Sequence[ShardFiles], size: int) -> Halves:
    """At least `size` embeddings, or all if there are fewer: float16 [n, dim]. Evenly spread shards come first."""
    found, count = [np.zeros((0, embeddings.dim), np.float16)], 0
    for shard in _spread(shards):
        if count >= size:
            break
        vectors, _ = embeddings.read(shard)
        found.append(vectors)
        count += len(vectors)
    return np.concatenate(found)


def _spread(shards: Sequence[ShardFiles]) -> Iterator[ShardFiles]:
    """All shards, starting with every n-th shard."""
    every = max(1, len(shards) // _SAMPLED_SHARDS)
    for start in range(every):
        yield from shards[start::every]


def _without_broken(store: Store, folder: str, parts: dict[str, IndexPart]) -> dict[str, IndexPart]:
    """Delete the records of parts whose file is gone or has the wrong size. Returns the other parts."""
    broken = {stem for stem, part in parts.items() if not _has_file(store, part)}
    for stem in broken:
        store.delete(f"{folder}/manifests/{stem}.json")
    return {stem: part for stem, part in parts.items() if stem not in broken}


def _has_file(store: Store, part: IndexPart) -> bool:
    try:
        return store.num_bytes(part.file.path) == part.file.num_bytes
    except FileNotFoundError:
        return False


def _remove(store: Store, folder: str, outdated: Collection[str], current: dict[str, IndexPart]) -> None:
    """Delete parts for other shards or generations, and files that interrupted runs left behind.

    A file that could belong to a part that another run is finishing stays until it is _ABANDONED_S old.
    """
    for stem in outdated:
        store.delete(f"{folder}/manifests/{stem}.json")
    named = {part.file.path for part in current.values()}
    for name in store.list(folder):
        stem, path = name.removesuffix(".faiss").rpartition(".")[0], f"{folder}/{name}"
        is_finished = stem in current or stem in outdated
        if path not in named and name.endswith(".faiss") and (is_finished or store.age_s(path) > _ABANDONED_S):
            store.delete(path)
    store.remove_temporary()
