"""Draws sample rows of a dataset by a hash of their uids or of their pictures, with their embeddings."""

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
"""Of all embeddings that a score draws: every worker holds them, as float32 twice as large."""
_REFERENCE = 4
"""Purpose of the uid hashes that draw rows (see `uid_hashes`)."""
_ALL = (1 << 64) - 1
_MOST_GROWTH = 16
"""The limit grows at most so many times at once, so that a poor estimate does not read a whole large dataset."""


@dataclass(frozen=True)
class Drawn:
    """Rows in order of their hashes. A uid is there once; if pictures were drawn, a picture."""

    hashes: U64
    uids: U64
    """[rows, 2]: the halves of each uid."""
    vectors: tuple[Halves, ...]
    """[rows, dim] of each column."""


@dataclass(frozen=True)
class Draw:
    """What is drawn. Plain values, so that it can be sent to workers."""

    columns: tuple[str, ...]
    """Embeddings; only rows that have all of them are drawn."""
    count: int
    seeds: Sequence[int] = (0,)
    """One sample for each."""
    distinct: bool = False
    """Draw pictures, or captions, by `content_hashes` in place of uids: one row of those that share it."""

    @property
    def needed(self) -> frozenset[str]:
        """The columns that it reads."""
        return frozenset({"uid", *self.columns, *(("sha256",) if self.distinct else ())})

    def hashes(self, rows: pa.Table, vectors: Halves, seed: int) -> U64:
        """What rows are drawn by [rows]. `vectors`: of the first column."""
        if self.distinct:
            return mix(content_hashes(rows, self.columns[0], vectors) ^ mix(np.array([seed], np.uint64)))
        return uid_hashes(rows["uid"], _REFERENCE, seed)

    def rows(self, snapshot: Snapshot, dim: int, tasks: Tasks) -> list[Drawn]:
        """For each seed the `count` rows of lowest hash, or all of a smaller dataset. Raises ScoreError."""
        check_size(min(self.count, snapshot.chunk.num_rows) * len(self.columns) * len(self.seeds), dim)
        limit = _limit(self.count, snapshot.chunk.num_rows)
        while True:
            found = list(scan(snapshot, self.needed, tasks, _of_shard, (self, limit)))
            drawn = [self._merged([shard[number] for shard in found]) for number in range(len(self.seeds))]
            fewest = min(len(each.hashes) for each in drawn)
            if fewest >= self.count or limit == _ALL:
                return drawn
            # Rows without embeddings, or with the same uid as others, left too few
            limit = min(_ALL, int(limit * min(_MOST_GROWTH, 1.1 * _with_margin(self.count) / max(fewest, 1))))

    def _merged(self, parts: Sequence[Drawn]) -> Drawn:
        hashes = np.concatenate([part.hashes for part in parts])
        _, first = np.unique(hashes, return_index=True)  # in order of the hashes; equal ones only equal uids have
        vectors = [np.concatenate(each) for each in zip(*(part.vectors for part in parts), strict=True)]
        if self.distinct:  # pictures whose bytes differ may have the same embedding
            first = first[_first_of_each(vectors[0][first])]
        first = first[: self.count]
        uids = np.concatenate([part.uids for part in parts])
        return Drawn(hashes[first], uids[first], tuple(each[first] for each in vectors))


def content_hashes(rows: pa.Table, column: str, vectors: Halves) -> U64:
    """64 bits [rows] that are equal where rows have the same picture or caption: a hash of the picture's SHA-256 or,
    where there is none and for embeddings of captions, of the embedding in `column`, float16 [rows, dim]."""
    sha256 = rows["sha256"].to_pylist() if is_of_pictures(column) else [None] * len(vectors)
    keys = (text.encode() if text else row.tobytes() for text, row in zip(sha256, vectors, strict=True))
    return np.frombuffer(b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys), "<u8").astype(
        np.uint64
    )


def _first_of_each(vectors: Halves) -> npt.NDArray[np.int64]:
    """Indices of the first row of each distinct vector, in order."""
    whole = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.shape[1] * vectors.itemsize))).ravel()
    return np.sort(np.unique(whole, return_index=True)[1]) if len(vectors) else np.zeros(0, np.int64)


def check_size(num_vectors: int, dim: int) -> None:
    """Raise ScoreError if so many embeddings are too large for the memory of workers."""
    num_bytes = num_vectors * dim * np.dtype(np.float16).itemsize
    if num_bytes > MAX_BYTES:
        raise ScoreError(
            f"{num_vectors:,} embeddings of {dim:,} dimensions to compare with take {num_bytes / 1e9:,.1f} GB in every "
            f"worker, more than the {MAX_BYTES / 1e9:,.1f} GB that are allowed; use fewer"
        )


def _with_margin(count: int) -> float:
    """The expected number of rows that makes fewer than `count` most unlikely: six standard deviations more."""
    return count + 6 * float(np.sqrt(count)) + 10


def _limit(count: int, num_rows: int) -> int:
    """A bound below which at least `count` of `num_rows` uniform hashes lie, almost certainly, and not many more."""
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
