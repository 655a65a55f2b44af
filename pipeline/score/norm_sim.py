"""NormSim: how similar a picture is to a set of target pictures (Wang et al. 2024, https://arxiv.org/abs/2405.19547).

    score(i) = (sum_z |I_i . z|^p)^(1/p) over the targets z; for p = infinity, the largest |I_i . z|

`norm: max` is the largest cosine without the absolute value, because a picture that is the opposite of a target is not
similar to it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
import pyarrow as pa
import torch

from pairmill.pipeline.columns.score_card import NOTES, State
from pairmill.pipeline.common.files import absolute
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.encode.device import resolve_device
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.draw import Draw, Halves, check_size
from pairmill.pipeline.score.embeddings import MAX_CELLS, chosen_model, embedding_column, normalized, read_vectors
from pairmill.pipeline.score.kind import Needs, OneNumber, RowScore, ScoreError, float_column
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import NormSimScore, ScoreConfig


@dataclass(frozen=True)
class NormSim(OneNumber):
    """The kind `norm_sim`. One column: NAME, float32; null where the embedding is null."""

    name: str
    score: ScoreConfig

    @property
    def settings(self) -> NormSimScore:
        """The settings of this kind."""
        assert self.score.norm_sim is not None
        return self.score.norm_sim

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """Fill in the model and the path of the targets."""
        alias = chosen_model(snapshot, self.settings.model).alias
        target = absolute(self.settings.target)
        return ScoreConfig(norm_sim=self.settings.model_copy(update={"model": alias, "target": target}))

    @property
    def needs(self) -> Needs:
        """The embedding of the picture."""
        return Needs(frozenset({embedding_column(self.settings.model or "", "image")}), gpu=True)

    @property
    def files(self) -> list[str]:
        """The .npy file of targets. A dataset of targets may grow; the state keeps the targets of the first run."""
        return [self.settings.target] if self.settings.target.endswith(".npy") else []

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Collect the embeddings of the targets, float16."""
        settings, mine = self.settings, chosen_model(snapshot, self.settings.model)
        if settings.target.endswith(".npy"):
            targets, missing = _read_array(Path(settings.target), settings.max_targets), 0
        else:
            other = Snapshot.of(Store(settings.target, snapshot.store.files.s3))
            _check_not_itself(snapshot, other, settings)
            targets, missing = (
                _of_dataset(other, settings, tasks, mine.contract.space),
                other.unfinished_shards,
            )
        if targets.shape[1] != mine.dim:
            raise ScoreError(
                f"{settings.target}: its embeddings have {targets.shape[1]:,} dimensions, but those of {mine.alias!r} "
                f"have {mine.dim:,}"
            )
        is_valid = np.isfinite(targets).all(axis=1) & targets.any(axis=1)
        if not is_valid.any():
            raise ScoreError(f"{settings.target} has no valid embedding")
        left_out = len(targets) - int(is_valid.sum())
        notes = []
        if left_out:
            all_targets = counted(len(targets), "target")
            notes.append(f"{left_out:,} of {all_targets} left out: the embedding is zero or not finite")
        if missing:
            notes.append(
                f"{settings.target} is not finished: {counted(missing, 'planned shard')} missing from the targets"
            )
        return State({"targets": targets[is_valid]}, {NOTES: notes} if notes else {})

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Load the targets, on the GPU if there is one."""
        device = resolve_device(run)
        targets = normalized(state.tensors["targets"]).to(device)  # float32 [targets, dim]
        return _OpenNormSim(self.name, self.settings, targets, device)


@dataclass(frozen=True)
class _OpenNormSim:
    name: str
    settings: NormSimScore
    targets: torch.Tensor
    device: str

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns the score of each row."""
        vectors, is_valid = read_vectors(rows[embedding_column(self.settings.model or "", "image")])
        scores = np.empty(len(vectors), np.float32)
        size = max(1, MAX_CELLS // len(self.targets))
        with torch.inference_mode():
            for start in range(0, len(vectors), size):
                block = slice(start, start + size)
                cosines = normalized(vectors[block]).to(self.device) @ self.targets.T  # float32 [block, targets]
                scores[block] = _NORMS[self.settings.norm](cosines).cpu().numpy()
        return pa.table({self.name: float_column(scores, is_valid)})


_NORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "max": lambda cosines: cosines.amax(dim=1),
    "inf": lambda cosines: cosines.abs().amax(dim=1),
    "2": lambda cosines: torch.linalg.vector_norm(cosines, ord=2, dim=1),
}


def _read_array(path: Path, max_targets: int) -> Halves:
    """Read embeddings from a .npy file of shape [targets, dim]. Never unpickles objects."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # unlike np.load, opens neither .npz files nor pickles
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise ScoreError(f"{path}: cannot be read as an array of embeddings: {str(error)[:200]}") from None
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise ScoreError(
            f"{path}: must be an array of embeddings [pictures, dimensions], but is {array.dtype} {array.shape}"
        )
    if len(array) > max_targets:
        raise ScoreError(
            f"{path}: has {len(array):,} embeddings; to use them all, raise max_targets (now {max_targets:,})"
        )
    check_size(len(array), array.shape[1])
    with np.errstate(over="ignore"):  # infinite embeddings are invalid and left out
        return normalized(np.asarray(array, np.float32)).numpy().astype(np.float16)


def _check_not_itself(snapshot: Snapshot, other: Snapshot, settings: NormSimScore) -> None:
    """Raise ScoreError if the targets come from the dataset's own input rows: each picture would match itself."""
    if settings.norm != "2" and other.plan.shards.equals(snapshot.plan.shards):
        raise ScoreError(
            f"{settings.target} contains the pictures of the dataset itself, so each would be its own target and score "
            "1; use other targets, `norm: 2`, which sums over all targets, or the score `density`"
        )


def _of_dataset(other: Snapshot, settings: NormSimScore, tasks: Tasks, space: str) -> Halves:
    """The embeddings of distinct pictures of another dataset by the same model: at most `max_targets`, by hash."""
    theirs = chosen_model(other, settings.target_model or settings.model)
    if theirs.contract.space != space:
        raise ScoreError(
            f"{settings.target}: its embeddings by {theirs.alias!r} were not made with the weights and activation of "
            f"{settings.model!r}; embed its pictures with that model first"
        )
    (drawn,) = Draw((theirs.column,), settings.max_targets, distinct=True).rows(other, theirs.dim, tasks)
    return drawn.vectors[0]
