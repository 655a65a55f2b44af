"""Density: how close a picture is to other pictures of its own dataset.

A sample of the dataset's pictures is clustered by spherical k-means (Dhillon and Modha 2001,
https://doi.org/10.1023/A:1007612920971). SemDeDup and DataComp's image-based filter cluster the same way.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.draw import Draw, Halves
from pairmill.pipeline.score.embeddings import (
    MAX_CELLS,
    chosen_model,
    embedding_column,
    float32_blocks,
    normalized,
    read_vectors,
)
from pairmill.pipeline.score.kind import ROUNDING, Floats, Mask, Needs, NoFiles, RowScore, ScoreError, float_column
from pairmill.pipeline.select.keys import key_halves
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import DensityScore, ScoreConfig

_ITERATIONS = 20
"""As many iterations as for DataComp's centroids; more would hardly move the centroids."""


@dataclass(frozen=True)
class Density(NoFiles):
    """The kind `density`. Columns, null where the embedding is null:

    NAME            mean cosine to the nearest neighbors in the sample; high in crowded regions. The row's own picture
                    does not count as a neighbor, even if it comes from another row
    NAME_cluster    number of the nearest centroid
    NAME_centroid   cosine to that centroid; low for outliers
    """

    name: str
    score: ScoreConfig

    @property
    def settings(self) -> DensityScore:
        """The settings of this kind."""
        assert self.score.density is not None
        return self.score.density

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """Fill in the model."""
        alias = chosen_model(snapshot, self.settings.model, self.settings.of).alias
        return ScoreConfig(density=self.settings.model_copy(update={"model": alias}))

    @property
    def _column(self) -> str:
        return embedding_column(self.settings.model or "", self.settings.of)

    @property
    def needs(self) -> Needs:
        """The embedding, and the columns that show whether the row's own picture or caption is in the sample."""
        return Needs(frozenset({"uid", "sha256", self._column}), all_rows=True)

    @property
    def schema(self) -> pa.Schema:
        """The density, the number of the nearest centroid, and the cosine to it."""
        kinds = (("", pa.float32()), ("_cluster", pa.int32()), ("_centroid", pa.float32()))
        return pa.schema([pa.field(f"{self.name}{suffix}", kind) for suffix, kind in kinds])

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Draw a sample of distinct pictures or captions with their hashes, and find the centroids of its clusters."""
        settings = self.settings
        dim = chosen_model(snapshot, settings.model, settings.of).dim
        (drawn,) = Draw((self._column,), settings.sample, distinct=True).rows(snapshot, dim, tasks)
        (vectors,) = drawn.vectors
        if len(vectors) <= settings.neighbors:
            raise ScoreError(
                f"the sample of {snapshot.store.root} has only {len(vectors):,} distinct {settings.of}s with an "
                f"embedding; density with {settings.neighbors} neighbors needs more"
            )
        centroids = spherical_kmeans(normalized(vectors), min(settings.clusters, len(vectors)))
        return State({"hashes": drawn.hashes, "vectors": vectors, "centroids": centroids.numpy()})

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Compare blocks of rows with the sample and the centroids."""
        return _OpenDensity(self, state)


class _OpenDensity:
    def __init__(self, kind: Density, state: State) -> None:
        self._kind = kind
        self._sample = normalized(state.tensors["vectors"])  # float32 [sample, dim]
        self._centroids = torch.from_numpy(state.tensors["centroids"].copy())  # float32 [clusters, dim]
        self._members = _Members(state, kind._column)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns the density of each row, the number of its nearest centroid, and the cosine to that centroid."""
        vectors, is_valid = read_vectors(rows[self._kind._column])
        cosines, clusters = self._centers(vectors)  # [rows, 1 or 2]
        density = np.zeros(len(vectors), np.float32)
        with torch.inference_mode():
            for block, inputs in float32_blocks(vectors, compared_with=len(self._sample)):
                own = self._members.own(rows.slice(block.start, len(inputs)), vectors[block])
                density[block] = self._density(inputs, own).numpy()
        columns = [
            float_column(density, is_valid),
            pa.array(clusters[:, 0].astype(np.int32), mask=~is_valid),
            float_column(cosines[:, 0], is_valid),
        ]
        return pa.Table.from_arrays(columns, schema=self._kind.schema)

    def certain(self, rows: pa.Table) -> dict[str, Mask]:
        """The rows whose nearest centroid rounding cannot change."""
        vectors, is_valid = read_vectors(rows[self._kind._column])
        cosines, _ = self._centers(vectors)
        is_clear = (cosines[:, :1] - cosines[:, 1:] > ROUNDING).all(axis=1)  # also if there is only one centroid
        return {f"{self._kind.name}_cluster": is_clear | ~is_valid}

    def _centers(self, vectors: Halves) -> tuple[Floats, npt.NDArray[np.int64]]:
        """The cosines and numbers of the two nearest centroids, each [rows, 2] (or [rows, 1] if there is only one)."""
        shape = len(vectors), min(2, len(self._centroids))
        cosines, numbers = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
        with torch.inference_mode():
            for block, inputs in float32_blocks(vectors, compared_with=len(self._centroids)):
                nearest = (inputs @ self._centroids.T).topk(shape[1], dim=1)
                cosines[block], numbers[block] = nearest.values.numpy(), nearest.indices.numpy()
        return cosines, numbers

    def _density(self, inputs: torch.Tensor, own: list[list[int]]) -> torch.Tensor:
        """The density of each row [block], from its embedding. `own`: the sample members to ignore for each row."""
        cosines = inputs @ self._sample.T  # [block, sample]
        for row, places in enumerate(own):
            cosines[row, places] = -torch.inf
        nearest = cosines.topk(self._kind.settings.neighbors, dim=1).values
        return nearest.masked_fill(nearest.isinf(), torch.nan).nanmean(dim=1)  # -inf: ignored members of a tiny sample


class _Members:
    """Finds a row's own picture or caption among the members of the sample."""

    def __init__(self, state: State, column: str) -> None:
        self._column = column
        self._is_old = "uids" in state.tensors  # the state is from a version that sampled rows
        vectors = state.tensors["vectors"]
        if self._is_old:
            self._places = {(high, low): place for place, (high, low) in enumerate(state.tensors["uids"].tolist())}
        else:
            self._hashes = {value: place for place, value in enumerate(state.tensors["hashes"].tolist())}
            self._vectors = {vector.tobytes(): place for place, vector in enumerate(vectors)}

    def own(self, rows: pa.Table, vectors: Halves) -> list[list[int]]:
        """For each row, the positions of the sample members that have its picture or its embedding."""
        if self._is_old:
            uids = np.stack(key_halves(rows["uid"], "uid"), axis=1).tolist()  # [rows, 2]
            found = [{self._places.get((high, low))} for high, low in uids]
        else:
            hashes = Draw((self._column,), 0, distinct=True).hashes(rows, vectors, 0).tolist()
            pairs = zip(hashes, vectors, strict=True)
            found = [{self._hashes.get(value), self._vectors.get(vector.tobytes())} for value, vector in pairs]
        return [[place for place in places if place is not None] for places in found]


def spherical_kmeans(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """Cluster vectors by their cosines. float32 [n, dim], L2-normalized -> centroids [count, dim], L2-normalized.

    Deterministic: starts from the first `count` vectors, which are sorted by a hash. A centroid without vectors stays
    where it is.
    """
    centroids = vectors[:count].clone()
    size = max(1, min(4_096, MAX_CELLS // count))
    for _ in range(_ITERATIONS):
        nearest = torch.cat([(part @ centroids.T).argmax(dim=1) for part in torch.split(vectors, size)])  # [n]
        sums = torch.zeros_like(centroids).index_add_(0, nearest, vectors)
        is_used = torch.bincount(nearest, minlength=count) > 0
        moved = torch.where(is_used[:, None], torch.nn.functional.normalize(sums, dim=1), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids
