"""Makes the passes over a chunk: samples its embeddings, assigns its rows to clusters, and gathers their members."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.subset import NOT_DROPPED, DropStep
from pairmill.pipeline.known.embeddings import Floats, Halves
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.filters import RowIndices
from pairmill.pipeline.select.keys import RANK, U64, Ranks, fill_ranks, ranks, uid_hashes
from pairmill.pipeline.select.outputs import Array
from pairmill.pipeline.select.scan import remaining_rows
from pairmill.pipeline.select.semantic.vectors import Vectors, on_grid

MAX_CLUSTERS_PER_ROW = 8
MARGIN_SHARE = 0.15
"""A row is a guest in every cluster whose center is nearly as similar to it as the center of its own cluster. This is
the allowed difference, as a share of the largest distance between near duplicates. Measured in
docs/decisions/022-semantic-dedup.md."""

MEMBERSHIP = np.dtype([("row_index", "<i8"), ("cluster", "<i4"), ("is_guest", "?")])
"""The membership of a row in one of its clusters."""
EDGE = np.dtype([("row_index", "<i8"), ("parent", "<i8"), *RANK.descr])
"""A row that is dropped if another row, its parent, stays. The rank is that of the parent."""

_SAMPLE_OF_ROWS = 22
"""A purpose of uid hashes (see `keys`). It is separate because an earlier step may have dropped all rows whose
hashes for another purpose are low."""
_BLOCK_ROWS = 512
"""Rows to compare with all centers at a time."""


@dataclass(frozen=True)
class Rows:
    """Describes what is read from each row: its embeddings and its score."""

    vectors: Vectors
    best: str | None

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the embeddings and the score."""
        return self.vectors.columns | (Expression(self.best).columns if self.best else frozenset())

    def ranks(self, table: pa.Table) -> Ranks:
        """RANKs of the rows, all equal if there is no score."""
        return ranks(table, self.best) if self.best else np.zeros(table.num_rows, RANK)


@dataclass(frozen=True)
class SampledVectors:
    """Collects the embeddings of a random sample, on the GRID. Whether a row is sampled depends on its uid alone."""

    vectors: Vectors
    dim: int
    fraction: float

    @property
    def columns(self) -> frozenset[str]:
        """The uid and the embeddings."""
        return self.vectors.columns | {"uid"}

    @property
    def dtypes(self) -> Sequence[np.dtype[Any]]:
        """One array of vectors, [rows] of float16 [columns * dim]."""
        return [np.dtype((np.float16, (self.dim * len(self.vectors.names),)))]

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """The vectors of the rows whose hash is below the fraction."""
        limit = np.uint64(min(self.fraction, 1.0) * (2**64 - 2**11))
        sampled = table.filter(pa.array(uid_hashes(table["uid"], _SAMPLE_OF_ROWS, 0) <= limit))
        vectors, usable = self.vectors.read(sampled)
        return [on_grid(vectors[:, usable]).astype(np.float16)]


def assign(
    chunk: Chunk, drop_step: DropStep, rows: Rows, margin: float, centers: Floats
) -> tuple[Array, npt.NDArray[np.int64], Array, npt.NDArray[np.int64]]:
    """Assign the remaining rows of a chunk to clusters.

    Returns (MEMBERSHIPs in row order, number of memberships of each cluster, EDGEs between rows with equal vectors,
    [number of rows without usable embeddings]). Among rows with equal vectors, only the best has memberships.
    """
    memberships, keys, unusable = [np.zeros(0, MEMBERSHIP)], [np.zeros(0, _EQUAL_KEY)], 0
    for table, row_indices in remaining_rows(chunk, drop_step, rows.columns):
        vectors, usable = rows.vectors.read(table)
        unusable += int((~usable).sum())
        row_indices, vectors = row_indices[usable], vectors[:, usable]
        keys.append(_equal_keys(vectors, rows.ranks(table)[usable], row_indices))
        for start in range(0, len(row_indices), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            memberships.append(_memberships(on_grid(vectors[:, block]), centers, margin, row_indices[block]))
    equal = _equal_edges(np.concatenate(keys))
    found = np.concatenate(memberships)
    found = found[~np.isin(found["row_index"], equal["row_index"])]
    return found, np.bincount(found["cluster"], minlength=len(centers)), equal, np.array([unusable])


def member_dtype(columns: int, dim: int) -> np.dtype[Any]:
    """The type of a member: a row in one of its clusters, with its rank and vectors."""
    return np.dtype([*MEMBERSHIP.descr, *RANK.descr, ("vector", "<f2", (columns, dim))])


def gather(
    chunk: Chunk,
    drop_step: DropStep,
    rows: Rows,
    dim: int,
    bounds: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.bool_],
    memberships: Array,
) -> list[Any]:
    """Gather the members of clusters in a chunk. Returns [number of members, members of each partition ..].

    `bounds`: the first cluster of each partition, and the end of the last. `wanted`: which of these clusters to gather.
    """
    memberships = memberships[(memberships["cluster"] >= bounds[0]) & (memberships["cluster"] < bounds[-1])]
    memberships = memberships[wanted[memberships["cluster"] - bounds[0]]]
    dtype = member_dtype(len(rows.vectors.names), dim)
    parts: list[list[Array]] = [[np.zeros(0, dtype)] for _ in bounds[1:]]
    for table, row_indices, of_shard in _with_memberships(chunk, drop_step, rows.columns, memberships):
        of_shard = of_shard[np.argsort(of_shard["cluster"], kind="stable")]
        members: Array = np.zeros(len(of_shard), dtype)
        for name in MEMBERSHIP.names or ():
            members[name] = of_shard[name]
        places = np.searchsorted(row_indices, members["row_index"])
        members["vector"] = rows.vectors.read(table)[0].transpose(1, 0, 2)[places]
        fill_ranks(members, rows.ranks(table)[places])
        cuts = np.searchsorted(members["cluster"], bounds[1:-1])
        for part, found in zip(parts, np.split(members, cuts), strict=True):
            part.append(found)
    return [len(memberships), *map(np.concatenate, parts)]


def margin_of(threshold: float) -> float:
    """How much less similar the center of another cluster can be than that of the row's own (see MARGIN_SHARE).

    Near duplicates are at most sqrt(2 - 2 * threshold) apart.
    """
    return MARGIN_SHARE * float(np.sqrt(2 - 2 * threshold))


def _with_memberships(
    chunk: Chunk, drop_step: DropStep, columns: frozenset[str], memberships: Array
) -> Iterator[tuple[pa.Table, RowIndices, Array]]:
    """(table, row indices, memberships) of the rows with memberships, for each shard that has any."""
    hidden = np.full(chunk.num_rows, NOT_DROPPED + 1, np.int8)
    found = memberships["row_index"] - chunk.first_row_index
    hidden[found] = drop_step[found]
    for table, row_indices in remaining_rows(chunk, hidden, columns):
        first, last = np.searchsorted(memberships["row_index"], [row_indices[0], row_indices[-1] + 1])
        yield table, row_indices, memberships[first:last]


def _memberships(points: Floats, centers: Floats, margin: float, row_indices: RowIndices) -> Array:
    """The MEMBERSHIPs of each row: in the nearest cluster, and as a guest in clusters within the margin."""
    similar = points @ centers.T  # [rows, clusters], without rounding
    home = similar.argmax(axis=1)
    lowest = similar[np.arange(len(points)), home] - np.float32(margin)
    row, cluster = np.divmod(np.flatnonzero(similar >= lowest[:, None]), len(centers))
    order = np.lexsort((cluster, -similar[row, cluster], row))
    row, cluster = row[order], cluster[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)  # 0 for the nearest, 1 for the next, ...
    row, cluster = row[place < MAX_CLUSTERS_PER_ROW], cluster[place < MAX_CLUSTERS_PER_ROW]
    found = np.zeros(len(row), MEMBERSHIP)
    found["row_index"], found["cluster"], found["is_guest"] = row_indices[row], cluster, cluster != home[row]
    return found


_EQUAL_KEY = np.dtype([("high", "<u8"), ("low", "<u8"), *RANK.descr, ("row_index", "<i8")])


def _equal_keys(vectors: Halves, found: Ranks, row_indices: RowIndices) -> Array:
    """The BLAKE2b-128 of each row's vectors, with the row's rank and index."""
    keys = np.zeros(len(row_indices), _EQUAL_KEY)
    data = np.ascontiguousarray(vectors.transpose(1, 0, 2)).reshape(len(row_indices), -1).view(np.uint8)
    digests = b"".join([hashlib.blake2b(row.data, digest_size=16).digest() for row in data])
    words: U64 = np.frombuffer(digests, "<u8").reshape(-1, 2)
    keys["high"], keys["low"], keys["row_index"] = words[:, 0], words[:, 1], row_indices
    fill_ranks(keys, found)
    return keys


def _equal_edges(keys: Array) -> Array:
    """An EDGE, without a rank, from every row to the best row with equal vectors, in row order."""
    keys = keys[np.lexsort((keys["row_index"], ~keys["low_bits"], ~keys["rank"], keys["low"], keys["high"]))]
    same = np.zeros(len(keys), np.bool_)
    same[1:] = (keys["high"][1:] == keys["high"][:-1]) & (keys["low"][1:] == keys["low"][:-1])
    best = np.maximum.accumulate(np.where(same, 0, np.arange(len(keys))))
    edges = np.zeros(int(same.sum()), EDGE)
    edges["row_index"], edges["parent"] = keys["row_index"][same], keys["row_index"][best[same]]
    return edges[np.argsort(edges["row_index"])]
