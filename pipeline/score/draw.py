"""Draws a sample of a dataset's rows with their embeddings, by a hash of their uids, pictures or captions."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.embeddings import is_of_pictures, read_vectors
from pairmill.pipeline.score.kind import ScoreError
from pairmill.pipeline.score.scan import ShardReader, scan
from pairmill.pipeline.select.keys import key_halves, mix, uid_hashes
from pairmill.pipeline.select.tasks import Tasks

U64 = npt.NDArray[np.uint64]
Halves = npt.NDArray[np.float16]

MAX_BYTES = 4 << 30
"""Maximum total size of the embeddings that a score draws. Each worker keeps them as
float32, which takes twice as much memory."""
_REFERENCE = 4
"""Purpose of the uid hashes by which rows are drawn (see `uid_hashes`)."""
_ALL = (1 << 64) - 1
_MOST_GROWTH = 16
"""Maximum factor by which the limit on hashes grows in one step, so that a bad estimate does not cause all rows of a
large dataset to be drawn."""


@dataclass(frozen=True)
class Drawn:
    """Drawn rows, sorted by hash. Each uid (or, with `Draw.distinct`, each picture or caption) occurs once."""

    hashes: U64
    uids: U64
    """[rows, 2]: the halves of each uid."""
    vectors: tuple[Halves, ...]
    """The embeddings in each column, [rows, dim]."""


@dataclass(frozen=True)
class Draw:
    """Describes what to draw. Consists of plain values, so it can be sent to workers."""

    columns: tuple[str, ...]
    """Columns of embeddings. Only rows with all of these embeddings are drawn."""
    count: int
    seeds: Sequence[int] = (0,)
    """A sample is drawn for each seed."""
    distinct: bool = False
    """Draw one row for each distinct picture or caption, by `content_hashes` instead of hashes of the uids."""

    @property
    def needed(self) -> frozenset[str]:
        """The columns that drawing reads."""
        return frozenset({"uid", *self.columns, *(("sha256",) if self.distinct else ())})

    def hashes(self, rows: pa.Table, vectors: Halves, seed: int) -> U64:
        """The hashes by which rows are drawn; [rows]. `vectors`: the embeddings in the first column."""
        if self.distinct:
            return mix(content_hashes(rows, self.columns[0], vectors) ^ mix(np.array([seed], np.uint64)))
        return uid_hashes(rows["uid"], _REFERENCE, seed)

    def rows(self, snapshot: Snapshot, dim: int, tasks: Tasks) -> list[Drawn]:
        """For each seed, the `count` rows with the lowest hashes, or all rows if there are fewer. Raises ScoreError."""
        check_size(min(self.count, snapshot.chunk.num_rows) * len(self.columns) * len(self.seeds), dim)
        limit = _limit(self.count, snapshot.chunk.num_rows)
        while True:
            found = list(scan(snapshot, self.needed, tasks, _of_shard, (self, limit)))
            drawn = [self._merged([shard[number] for shard in found]) for number in range(len(self.seeds))]
            fewest = min(len(each.hashes) for each in drawn)
            if fewest >= self.count or limit == _ALL:
                return drawn
            # The limit let through too few rows, because some have no embeddings or share a uid
            limit = min(_ALL, int(limit * min(_MOST_GROWTH, 1.1 * _with_margin(self.count) / max(fewest, 1))))

    def _merged(self, parts: Sequence[Drawn]) -> Drawn:
        hashes = np.concatenate([part.hashes for part in parts])
        _, first = np.unique(hashes, return_index=True)  # sorted by hash; only equal uids have equal hashes
        vectors = [np.concatenate(each) for each in zip(*(part.vectors for part in parts), strict=True)]
        if self.distinct:  # pictures whose bytes differ may have the same embedding
            first = first[_first_of_each(vectors[0][first])]
        first = first[: self.count]
        uids = np.concatenate([part.uids for part in parts])
        return Drawn(hashes[first], uids[first], tuple(each[first] for each in vectors))


def content_hashes(rows: pa.Table, column: str, vectors: Halves) -> U64:
    """64-bit hashes [rows] that are equal for rows with the same picture or caption.

    They are computed from the picture's SHA-256 or, for caption embeddings and rows without a SHA-256, the embedding in
    `column`. `vectors`: these embeddings, float16 [rows, dim].
    """
    sha256 = rows["sha256"].to_pylist() if is_of_pictures(column) else [None] * len(vectors)
    keys = (text.encode() if text else row.tobytes() for text, row in zip(sha256, vectors, strict=True))
    return np.frombuffer(b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys), "<u8").astype(
        np.uint64
    )


def _first_of_each(vectors: Halves) -> npt.NDArray[np.int64]:
    """The index of the first row with each distinct vector, ascending."""
    whole = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.shape[1] * vectors.itemsize))).ravel()
    return np.sort(np.unique(whole, return_index=True)[1]) if len(vectors) else np.zeros(0, np.int64)


def check_size(num_vectors: int, dim: int) -> None:
    """Raise ScoreError if this many embeddings would take more memory than a worker may use."""
    num_bytes = num_vectors * dim * np.dtype(np.float16).itemsize
    if num_bytes > MAX_BYTES:
        raise ScoreError(
            f"comparing with {num_vectors:,} embeddings of {dim:,} dimensions takes {num_bytes / 1e9:,.1f} GB in every "
            f"worker, more than the allowed {MAX_BYTES / 1e9:,.1f} GB; use fewer embeddings"
        )


def _with_margin(count: int) -> float:
    """The number of rows to aim for, six standard deviations above `count`, so that getting fewer is very unlikely."""
    return count + 6 * float(np.sqrt(count)) + 10


def _limit(count: int, num_rows: int) -> int:
    """A limit for `num_rows` uniform hashes: almost certainly at least `count` are below it, but not many more."""
    share = _with_margin(count) / max(num_rows, 1)
    return _ALL if share >= 1 else int(share * (1 << 64))


def _of_shard(reader: ShardReader, shard: int, generation: int, draw: Draw, limit: int) -> list[Drawn]:
    """For each seed, the rows of a shard that may belong to its sample."""
    rows = reader.read(shard, generation)
    vectors, are_valid = zip(*(read_vectors(rows[column]) for column in draw.columns), strict=True)
    is_valid = np.logical_and.reduce(are_valid)
    uids = np.stack(key_halves(rows["uid"], "uid"), axis=1)  # [rows, 2]
    found = []
    for seed in draw.seeds:
        hashes = draw.hashes(rows, vectors[0], seed)
        chosen = np.flatnonzero(is_valid & (hashes <= np.uint64(limit)))
        found.append(Drawn(hashes[chosen], uids[chosen], tuple(each[chosen] for each in vectors)))
    return found
