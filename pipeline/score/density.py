"""Density: how close a picture is to others of its own dataset.

The dataset's pictures are grouped around centroids by spherical k-means (Dhillon and Modha 2001,
https://doi.org/10.1023/A:1007612920971) on a sample. SemDeDup and DataComp's image-based filter cluster the same way.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.draw import Draw
from pairmill.pipeline.score.embeddings import (
    MAX_CELLS,
    chosen_model,
    embedding_column,
    float32_blocks,
    normalized,
    read_vectors,
)
from pairmill.pipeline.score.kind import Needs, NoFiles, RowScore, ScoreError, float_column
from pairmill.pipeline.select.keys import key_halves
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import DensityScore, ScoreConfig

U64 = npt.NDArray[np.uint64]

_ITERATIONS = 20
"""As for DataComp's centroids; further iterations hardly move them."""


@dataclass(frozen=True)
class Density(NoFiles):
    """The kind `density`. Columns, null where the embedding is null:

    NAME            mean cosine to the nearest neighbors in the sample; high in crowded regions
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
        """One embedding, and the uid, which tells whether a row is itself in the sample."""
        return Needs(frozenset({"uid", self._column}))

    @property
    def schema(self) -> pa.Schema:
        """Two cosines and a number."""
        kinds = (("", pa.float32()), ("_cluster", pa.int32()), ("_centroid", pa.float32()))
        return pa.schema([pa.field(f"{self.name}{suffix}", kind) for suffix, kind in kinds])

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """The sample, its uids, and the centroids of its clusters."""
        settings = self.settings
        dim = chosen_model(snapshot, settings.model, settings.of).dim
        (drawn,) = Draw((self._column,), settings.sample).rows(snapshot, dim, tasks)
        (vectors,) = drawn.vectors
        if len(vectors) <= settings.neighbors:
            raise ScoreError(
                f"the sample of {snapshot.store.root} has {len(vectors):,} pairs with an embedding; density with "
                f"{settings.neighbors} neighbors needs more"
            )
        centroids = spherical_kmeans(normalized(vectors), min(settings.clusters, len(vectors)))
        return State({"uids": drawn.uids, "vectors": vectors, "centroids": centroids.numpy()})

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Compare blocks of rows with the sample and the centroids."""
        return _OpenDensity(self, state)


class _OpenDensity:
    def __init__(self, kind: Density, state: State) -> None:
        self._kind = kind
        self._sample = normalized(state.tensors["vectors"])  # float32 [sample, dim]
        self._centroids = torch.from_numpy(state.tensors["centroids"].copy())  # float32 [clusters, dim]
        uids = state.tensors["uids"].tolist()
        self._place = {(high, low): place for place, (high, low) in enumerate(uids)}

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Two cosines and a number per row."""
        vectors, is_valid = read_vectors(rows[self._kind._column])
        uids = np.stack(key_halves(rows["uid"], "uid"), axis=1)  # [rows, 2]
        density, cosine = np.zeros(len(vectors), np.float32), np.zeros(len(vectors), np.float32)
        cluster = np.zeros(len(vectors), np.int32)
        with torch.inference_mode():
            compared_with = max(len(self._sample), len(self._centroids))
            for block, inputs in float32_blocks(vectors, compared_with=compared_with):
                nearest = (inputs @ self._centroids.T).max(dim=1)
                cosine[block], cluster[block] = nearest.values.numpy(), nearest.indices.numpy()
                density[block] = self._density(inputs, uids[block]).numpy()
        columns = [float_column(density, is_valid), pa.array(cluster, mask=~is_valid), float_column(cosine, is_valid)]
        return pa.Table.from_arrays(columns, schema=self._kind.schema)

    def _density(self, inputs: torch.Tensor, uids: U64) -> torch.Tensor:
        """float32 [block, dim] -> [block]. A row is not its own neighbor."""
        cosines = inputs @ self._sample.T  # [block, sample]
        for row, (high, low) in enumerate(uids.tolist()):
            if (place := self._place.get((high, low))) is not None:
                cosines[row, place] = -torch.inf
        return cosines.topk(self._kind.settings.neighbors, dim=1).values.mean(dim=1)


def spherical_kmeans(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """float32 [n, dim], L2-normalized -> centroids [count, dim], L2-normalized.

    Deterministic: starts at the first `count` vectors, which are in the order of a hash. A centroid without vectors
    stays where it is.
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
