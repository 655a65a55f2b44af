"""Compares rows with the embeddings of another dataset: brute force, in blocks.

Each row is compared with each known row: 2 x rows x known rows x dimensions floating-point operations.
Rounding errors do not affect whether a cosine of the stored float16 vectors reaches the threshold: float32 decides the
clear cases, and float64 those close to the threshold. So the result does not depend on the blocks, the order or the
machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.footers import read_footer
from pairmill.pipeline.known.datasets import KnownDataset
from pairmill.pipeline.known.keys import Mask
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.node_copy import local_keys
from pairmill.pipeline.known.shared import shared_file
from pairmill.schemas.known import EmbeddingKind, Known, KnownRows
from pairmill.schemas.manifest import DataFile
from pairmill.schemas.pairs import is_embedding, score_column_names

Halves = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]

MAX_VECTORS = 1_000_000
_BLOCK_ROWS, _BLOCK_VECTORS = 1_024, 4_096
"""A block of cosines: 16 MB of float32."""


@dataclass(frozen=True)
class SharedVectors:
    """A temporary file of float16 [num_vectors, dim]. Cheap to pickle: each process maps the file once."""

    store: Store
    num_vectors: int
    dim: int
    file: DataFile

    def near(self, vectors: Halves, threshold: float) -> Mask:
        """For each vector [rows, dim], whether its cosine with any of the file's reaches `threshold`: bool [rows]."""
        found = np.zeros(len(vectors), np.bool_)
        known = _open(local_keys(self.store, self.file), self.num_vectors, self.dim)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            found[block] = _near(vectors[block], known, threshold)
        return found


def near_vectors(
    vectors: Halves, known: Halves, threshold: float
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """All pairs whose cosine is at least `threshold`, in parts: (indices in `vectors`, indices in `known`, cosines)."""
    margin = _margin(vectors.shape[1])
    for first in range(0, len(vectors), _BLOCK_ROWS):
        mine = vectors[first : first + _BLOCK_ROWS]
        for start in range(0, len(known), _BLOCK_VECTORS):
            theirs = known[start : start + _BLOCK_VECTORS]
            close, listed = np.nonzero(unit(mine) @ unit(theirs).T >= threshold - margin)
            for part in range(0, len(close), _BLOCK_VECTORS):
                one, other = close[part : part + _BLOCK_VECTORS], listed[part : part + _BLOCK_VECTORS]
                cosines = exact_cosines(mine[one], theirs[other])
                near = cosines >= threshold
                yield one[near] + first, other[near] + start, cosines[near]


def _margin(dim: int) -> float:
    """Twice the error of a float32 dot product of unit vectors."""
    return (dim + 8) * 2.0**-23


def _near(vectors: Halves, known: Halves, threshold: float) -> Mask:
    margin = _margin(vectors.shape[1])
    found, waiting, units = np.zeros(len(vectors), np.bool_), np.arange(len(vectors)), unit(vectors)
    for start in range(0, len(known), _BLOCK_VECTORS):
        if not len(waiting):
            break
        block = known[start : start + _BLOCK_VECTORS]
        cosines = units[waiting] @ unit(block).T  # float32 [waiting, block]
        is_near: Mask = np.any(cosines >= threshold + margin, axis=1)
        for row in np.flatnonzero(np.logical_not(is_near) & (cosines >= threshold - margin).any(axis=1)).tolist():
            close = np.flatnonzero(cosines[row] >= threshold - margin)
            is_near[row] = bool((exact_cosines(vectors[waiting[row]], block[close]) >= threshold).any())
        found[waiting[is_near]] = True
        waiting = waiting[np.logical_not(is_near)]
    return found


def unit(vectors: Halves) -> Floats:
    """Vectors, float16 [..., dim], as float32 [..., dim] of length 1, which undoes most of the rounding to float16."""
    floats = vectors.astype(np.float32)
    floats /= np.sqrt(np.einsum("...i,...i->...", floats, floats))[..., None]
    return floats


def exact_cosines(one: Halves, other: Halves) -> npt.NDArray[np.float64]:
    """The cosines of two arrays of vectors that broadcast, [..., dim] -> [...], in float64."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    found: npt.NDArray[np.float64] = (a * b).sum(axis=-1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return found


def read_vectors(column: pa.ChunkedArray) -> tuple[Halves, Mask]:
    """(embeddings, float16 [rows, dim]; whether each is usable [rows]: not null, zero, NaN or infinite)."""
    array = column.combine_chunks()
    is_valid: Mask = array.is_valid().to_numpy(zero_copy_only=False)
    values = array.flatten().to_numpy(zero_copy_only=False).astype(np.float16, copy=False)
    vectors = np.zeros((len(array), array.type.list_size), np.float16)
    vectors[is_valid] = values.reshape(-1, array.type.list_size)  # `flatten` skips null lists
    usable: Mask = np.logical_and(np.all(np.isfinite(vectors), axis=1), np.any(vectors, axis=1))
    return vectors, usable


def column_of(kind: EmbeddingKind, alias: str) -> str:
    """Name of the column with the embeddings of a model."""
    names = score_column_names(alias)
    return names.image_embedding if kind == "embedding" else names.text_embedding


def models_in(schema: pa.Schema) -> list[str]:
    """Aliases of the models whose picture embeddings a dataset has."""
    prefix = score_column_names("").image_embedding
    return [
        field.name.removeprefix(prefix) for field in schema if is_embedding(field) and field.name.startswith(prefix)
    ]


@contextmanager
def shared_vectors(store: Store, own: Chunk, known: Known, kind: EmbeddingKind, alias: str) -> Iterator[SharedVectors]:
    """Share the known embeddings in a file while the context lasts. `own`: shards with embeddings by the model `alias`.

    Raises KnownError if the other dataset has no, or too many, embeddings made with the same weights.
    """
    other = open_vectors(store, own, known, kind, alias)
    column = column_of(kind, known.other_model or alias)
    dim = int(other.chunk.schema().field(column).type.list_size)
    with store.new_file() as file:
        num_vectors = 0
        for table in other.tables([column]):
            vectors, usable = read_vectors(table[column])
            file.write(vectors[usable].tobytes())
            num_vectors += int(usable.sum())
            if num_vectors > MAX_VECTORS:
                raise _too_many(known)
        if not num_vectors:
            raise KnownError(f"{known.path}: no row has a usable {kind}")
        digest, num_bytes = file_checksum(file)
        with shared_file(store, file) as path:
            yield SharedVectors(store, num_vectors, dim, DataFile(path=path, num_bytes=num_bytes, blake2b=digest))


def open_vectors(store: Store, own: Chunk, known: Known, kind: EmbeddingKind, alias: str) -> KnownDataset:
    """Open the other dataset. Raises KnownError if it has no, or too many, embeddings made with the same weights."""
    rows = KnownRows(path=known.path, rows="kept" if known.rows == "kept" else "pairs", subset=known.subset)
    other_alias, theirs = known.other_model or alias, Store(known.path, store.files.s3)
    try:
        other = KnownDataset.open(theirs, rows, [column_of(kind, other_alias)])
    except KnownError as error:
        raise KnownError(
            f"{error}: set other_model to that dataset's alias of the same model, or add the model there with "
            "embed --add-model"
        ) from None
    if (mine := space_of(own, alias)) is None or mine != space_of(other.chunk, other_alias):
        raise KnownError(
            f"{known.path}: its embeddings by {other_alias!r} were not made with the weights and activation of "
            f"{alias!r}; embed its pictures with that model first"
        )
    if known.subset is None and known.rows != "kept" and other.chunk.num_rows > 2 * MAX_VECTORS:
        raise _too_many(known)  # before the embeddings are read
    return other


def space_of(chunk: Chunk, alias: str) -> str | None:
    """The space of a model's embeddings, from the file with its columns; None if no file records it."""
    shard = chunk.shards[0]
    for name in (shard.pairs, *shard.columns):
        for model in read_footer(chunk.store, name).models:
            if model.alias == alias:
                return model.space
    return None


def _too_many(known: Known) -> KnownError:
    return KnownError(
        f"{known.path} has more than {MAX_VECTORS:,} embeddings, too many to compare each one with every row: choose a "
        "subset of it, or combine both datasets into one and use dedup by embedding"
    )


@lru_cache(maxsize=2)
def _open(path: str, num_vectors: int, dim: int) -> Halves:
    return np.asarray(np.memmap(path, "<f2", "r", 0, (num_vectors, dim)))


def chosen_model(schema: pa.Schema, alias: str | None) -> str:
    """The alias of a model that the dataset has; for None, the alias of its only model. Raises KnownError."""
    models = models_in(schema)
    if alias is None and len(models) == 1:
        return models[0]
    if alias in models:
        return str(alias)
    which = "choose one with `model`" if alias is None else f"there is no model {alias!r}"
    raise KnownError(f"{which}; the dataset has embeddings by: {', '.join(models) or 'none'}")
