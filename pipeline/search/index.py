"""Searches the embeddings of a snapshot: those in the parts of an index, and those of the few shards in no part."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted, pairmill_command
from pairmill.pipeline.reader.embeddings import Embeddings
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.search.build_index import index_shards
from pairmill.pipeline.search.errors import SearchError
from pairmill.pipeline.search.local_copy import check_size, local_copy
from pairmill.pipeline.search.part_files import index_folder, read_parts
from pairmill.pipeline.search.vector_index import FLAT_ROWS, Floats, Ids, RowMask, VectorIndex
from pairmill.schemas.index import EmbeddingKind, IndexedShard, IndexPart

MAX_UNINDEXED_ROWS = FLAT_ROWS
"""Maximum number of rows outside the index. A search includes them: it compares them in memory, exactly."""


@dataclass(frozen=True)
class _OpenPart:
    """One part, and the positions of its shards in the snapshot."""

    index: VectorIndex
    shards: Sequence[IndexedShard]
    first_rows: Ids
    """For each shard, the row index of its first row in the snapshot; -1 if its rows are not searched in this part."""

    def search(self, queries: Floats, k: int, allowed: RowMask | None) -> tuple[Ids, Floats]:
        """(row indices, scores), each [n, k]; the row index is -1 where there is no further row. Raises SearchError."""
        ids, scores = self.index.search(queries, k, self._mask(allowed))
        starts = np.array([0, *accumulate(shard.num_rows for shard in self.shards)], np.int64)
        if (ids >= starts[-1]).any():
            raise SearchError("an index file is damaged: delete the folder index/ and run `pairmill index` again")
        shard = np.searchsorted(starts, np.maximum(ids, 0), side="right") - 1
        return np.where(ids < 0, -1, ids - starts[shard] + self.first_rows[shard]), scores

    def _mask(self, allowed: RowMask | None) -> RowMask | None:
        """`allowed`, indexed by id instead of by row index; None if all ids are allowed."""
        if allowed is None and (self.first_rows >= 0).all():
            return None
        spans = zip(self.first_rows.tolist(), (shard.num_rows for shard in self.shards), strict=True)
        return np.concatenate([
            np.zeros(rows, np.bool_) if first < 0
            else np.ones(rows, np.bool_) if allowed is None else allowed[first : first + rows]
            for first, rows in spans
        ])  # fmt: skip


class SearchIndex:
    """The embeddings of one model in a snapshot, ready to search. Thread-safe.

    `num_rows`: the rows of the snapshot; `num_embeddings`: the rows that have an embedding and can be found.
    """

    def __init__(self, embeddings: Embeddings, parts: Sequence[_OpenPart]) -> None:
        self.embeddings = embeddings
        self._parts = parts
        self.num_rows = embeddings.snapshot.chunk.num_rows
        self.num_embeddings = sum(
            shard.num_embeddings
            for part in parts
            for shard, first in zip(part.shards, part.first_rows, strict=True)
            if first >= 0
        )

    @classmethod
    def open(
        cls,
        store: Store,
        snapshot: Snapshot,
        alias: str | None = None,
        kind: EmbeddingKind = "image",
        on_step: OnStep = ignore_step,
    ) -> "SearchIndex":
        """Open the index of a model's embeddings. Up to MAX_UNINDEXED_ROWS rows need not be in any part: their
        embeddings are read into memory.

        Parts on disk are mapped into memory. Parts on S3 are first copied to a local cache (`local_copy`).

        Args:
            store: The output folder.
            snapshot: The folder's shards; row indices number their rows.
            alias: The model; None for the dataset's first model.
            kind: Whether to search the embeddings of the pictures or of the captions.
            on_step: Called for shards that are read and parts that are opened.

        Raises:
            SearchError: There is no such model, or too many rows are not in any part. The message says what to do.
            DatasetError: The dataset has changed or is damaged.
        """
        embeddings = Embeddings.of(snapshot, alias, kind)
        records = [*read_parts(store, index_folder(embeddings)).values()]
        found, covered = _current(embeddings, records)
        first_rows = _first_rows(snapshot)
        missing = [position for position in range(len(first_rows)) if position not in covered]
        shards = [snapshot.chunk.shards[position] for position in missing]
        if (rows := sum(shard.num_rows for shard in shards)) > MAX_UNINDEXED_ROWS:
            raise SearchError(
                f"{store.root}: {counted(rows, 'row')} not in an index; run `{_command(embeddings)}` first"
            )
        check_size(store, (record.file for record, _ in found))
        parts = []
        for number, (record, positions) in enumerate(found):
            on_step("opening the index", number, len(found))
            starts = np.array([-1 if each is None else first_rows[each] for each in positions], np.int64)
            parts.append(_OpenPart(_read(embeddings, record), record.shards, starts))
        if rows:
            on_step("reading embeddings", 0, 1)
            index, indexed = index_shards(embeddings, shards)
            parts.append(_OpenPart(index, indexed, np.array([first_rows[each] for each in missing], np.int64)))
        return cls(embeddings, parts)

    @property
    def dim(self) -> int:
        """The length of each vector."""
        return self.embeddings.dim

    @property
    def is_exact(self) -> bool:
        """Whether a search reads every vector."""
        return all(part.index.lists == 1 for part in self._parts)

    def search(self, vectors: Floats, k: int, allowed: RowMask | None = None) -> tuple[Ids, Floats]:
        """The k most similar rows for each vector.

        Args:
            vectors: float32 [n, dim], with any norm except 0.
            k: Number of rows to find.
            allowed: Whether each row can be found, by row index [num_rows]; None for all rows.

        Returns:
            (int64 [n, k], float32 [n, k]): row indices in the snapshot, best first (see Chunk.first_row_index), and the
            cosine of each, with an error below 0.0005: stored embeddings have a norm of 1 only to within the precision
            of float16, and are not normalized again. If fewer than k rows are found, the remaining indices are -1 and
            their cosines -inf. Rows with equal cosines are in the order of the dataset; if only some of them are among
            the k, the index determines which.
        """
        queries = np.asarray(vectors, np.float32)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        rows, scores = [np.full((len(queries), k), -1, np.int64)], [np.full((len(queries), k), -np.inf, np.float32)]
        for part in self._parts:
            found = part.search(queries, k, allowed)
            rows.append(found[0])
            scores.append(np.where(found[0] < 0, -np.inf, found[1]).astype(np.float32))
        all_rows, all_scores = np.concatenate(rows, axis=1), np.concatenate(scores, axis=1)  # [n, k * (parts + 1)]
        best = np.lexsort((all_rows, -all_scores), axis=1)[:, :k]
        return np.take_along_axis(all_rows, best, axis=1), np.take_along_axis(all_scores, best, axis=1)


def _current(
    embeddings: Embeddings, records: Sequence[IndexPart]
) -> tuple[list[tuple[IndexPart, list[int | None]]], set[int]]:
    """(the parts to search, each with the positions of its shards in the snapshot; all positions that they cover).

    The position is None for a shard that has another generation in the snapshot or that another part covers.
    """
    positions = {
        (shard.shard, embeddings.blake2b(shard)): position
        for position, shard in enumerate(embeddings.snapshot.chunk.shards)
    }
    covered: set[int] = set()
    found = []
    located = [(part, [positions.get((each.shard, each.blake2b)) for each in part.shards]) for part in records]
    for part, places in sorted(located, key=lambda each: -sum(place is not None for place in each[1])):
        free: list[int | None] = [None if place in covered else place for place in places]
        if new := {place for place in free if place is not None}:
            covered |= new
            found.append((part, free))
    return found, covered


def _first_rows(snapshot: Snapshot) -> list[int]:
    """The row index of the first row of each shard."""
    return [snapshot.chunk.first_row_index + span.start for _, span in snapshot.chunk.spans()]


def _read(embeddings: Embeddings, part: IndexPart) -> VectorIndex:
    store = embeddings.snapshot.store
    name, path, again = store.path(part.file.path), local_copy(store, part.file), f"run `{_command(embeddings)}` again"
    if not Path(path).is_file():
        raise SearchError(f"{name} is gone: {again}")
    if Path(path).stat().st_size != part.file.num_bytes:
        raise SearchError(f"{name} is incomplete: {again}")
    try:
        index = VectorIndex.read(path)
        if (index.dim, len(index)) != (embeddings.dim, part.num_embeddings):
            raise ValueError("its vectors are not those of the dataset")
    except ValueError as error:
        if store.remote:  # the copy was intact when it was made
            Path(path).unlink(missing_ok=True)
            raise SearchError(f"{path}, a copy of {name}, was damaged and has been deleted: search again") from None
        folder = name.rpartition("/")[0]
        raise SearchError(f"{name} is damaged ({error}): delete {folder} and {again}") from None
    return index


def _command(embeddings: Embeddings) -> str:
    """The command that indexes these embeddings."""
    models = embeddings.snapshot.plan.job.models
    is_first = bool(models) and models[0].alias == embeddings.alias
    options = [] if is_first else ["--model", embeddings.alias]
    options += [] if embeddings.kind == "image" else ["--of", "text"]
    return pairmill_command("index", embeddings.snapshot.store.root, *options)
