"""Reads the stored embeddings of one model, either of the pictures or of the captions."""

from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.chunks import ShardFiles
from pairmill.pipeline.dataset.footers import read_footer
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.index import EmbeddingKind
from pairmill.schemas.pairs import score_column_names

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]


class EmbeddingsError(PairmillError, ValueError):
    """The dataset has no such embeddings; the message says what to do."""

    kind = FailureKind.JOB


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of one model in the shards of a snapshot."""

    snapshot: Snapshot
    alias: str
    kind: EmbeddingKind

    @classmethod
    def of(cls, snapshot: Snapshot, alias: str | None, kind: EmbeddingKind = "image") -> "Embeddings":
        """The embeddings of a model; None for the first model. Raises EmbeddingsError if the dataset has none."""
        if kind not in get_args(EmbeddingKind):
            raise EmbeddingsError(f"there are no embeddings of {kind!r}, only of: {', '.join(get_args(EmbeddingKind))}")
        known = [*(model.alias for model in snapshot.plan.job.models), *snapshot.added.models]
        root = snapshot.store.root
        if not known:
            add = f"{pairmill_command('embed', root, '--add-model')} NAME"
            raise EmbeddingsError(f"{root} has no embeddings; compute them with `{add}` first")
        if alias is not None and alias not in known:
            if problem := snapshot.added.missing(score_column_names(alias).image_embedding):
                raise EmbeddingsError(problem)
            raise EmbeddingsError(f"{root} has no model {alias!r}; it has: {', '.join(known)}")
        return cls(snapshot, alias or known[0], kind)

    @property
    def column(self) -> str:
        """The name of the column."""
        names = score_column_names(self.alias)
        return names.image_embedding if self.kind == "image" else names.text_embedding

    @property
    def dim(self) -> int:
        """The length of each embedding."""
        return int(self.snapshot.schema.field(self.column).type.list_size)

    @cached_property
    def contract(self) -> ScoreContract:
        """How the embeddings were computed. Raises EmbeddingsError if their file does not record it."""
        name, _ = self._file(self.snapshot.chunk.shards[0])
        with self.snapshot.errors():
            footer = read_footer(self.snapshot.store, name)
        for model in footer.models:
            if model.alias == self.alias:
                return model
        raise EmbeddingsError(f"{self.snapshot.store.path(name)} does not record which model {self.alias!r} is")

    def blake2b(self, shard: ShardFiles) -> str:
        """The checksum of the shard's file with the embeddings, as in its manifest."""
        return self._file(shard)[1]

    def read(self, shard: ShardFiles) -> tuple[Halves, npt.NDArray[np.int64]]:
        """(the embeddings, float16 [embeddings, dim]; the row of each in the shard's pairs file, int64 [embeddings]).

        Leaves out embeddings that are null or zero, or contain NaN or infinity. Raises DatasetError.
        """
        column = self.snapshot.read(shard, [self.column])[self.column]
        array: pa.FixedSizeListArray = column.combine_chunks()
        rows = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
        vectors: Halves = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)  # without nulls
        is_valid = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        return (vectors, rows) if is_valid.all() else (vectors[is_valid], rows[is_valid])

    def vector(self, position: int, row: int) -> Floats | None:
        """The embedding of one row of the shard at this position, float32 [dim]; None if the row has none."""
        vectors, rows = self.read(self.snapshot.chunk.shards[position])
        (found,) = np.nonzero(rows == row)
        return vectors[found[0]].astype(np.float32) if len(found) else None

    def _file(self, shard: ShardFiles) -> tuple[str, str]:
        """(name, checksum) of the shard's file with the embeddings."""
        if self.alias not in self.snapshot.added.models:
            return shard.pairs, shard.pairs_blake2b
        added = self.snapshot.added.names.index(self.alias)
        return shard.columns[added], shard.columns_blake2b[added]
