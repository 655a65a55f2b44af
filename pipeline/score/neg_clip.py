"""negCLIPLoss: how well a pair fits, minus how well its picture and its caption fit other pairs (Wang et al. 2024,
https://arxiv.org/abs/2405.19547, equation 1).

    score(i) = I_i . Y_i - T/2 (logsumexp_j(I_i . Y_j / T) + logsumexp_j(I_j . Y_i / T)),   j over the batch of i

The paper cuts shuffled data into batches, averages over several shuffles, and includes i in its batch. Here, the
batches of all rows are the same except for one member: the batch of a row consists of the row itself and the B - 1
other rows of the dataset whose uids have the lowest hashes. Every batch therefore has exactly B members (or, in a
smaller dataset, all rows), the score of a row does not depend on the shards, and new rows are scored like the others.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.encode.device import resolve_device
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.draw import Draw
from pairmill.pipeline.score.embeddings import MAX_CELLS, chosen_model, embedding_column, normalized, read_vectors
from pairmill.pipeline.score.kind import Needs, NoFiles, OneNumber, RowScore, ScoreError, float_column
from pairmill.pipeline.select.keys import key_halves
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import NegClipScore, ScoreConfig

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class NegClip(OneNumber, NoFiles):
    """The kind `neg_clip`. One column: NAME, float32, at most 0; null where one of the two embeddings is null."""

    name: str
    score: ScoreConfig

    @property
    def settings(self) -> NegClipScore:
        """The settings of this kind."""
        assert self.score.neg_clip is not None
        return self.score.neg_clip

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """Fill in the model."""
        alias = chosen_model(snapshot, self.settings.model).alias
        return ScoreConfig(neg_clip=self.settings.model_copy(update={"model": alias}))

    @property
    def _columns(self) -> tuple[str, str]:
        model = self.settings.model or ""
        return embedding_column(model, "image"), embedding_column(model, "text")

    @property
    def needs(self) -> Needs:
        """Both embeddings, and the uid, which shows whether the row itself is in the batch."""
        return Needs(frozenset({"uid", *self._columns}), gpu=True, all_rows=True)

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Draw the rows of each batch, with their uids and stored embeddings."""
        settings = self.settings
        seeds = [settings.seed * settings.repeats + number for number in range(settings.repeats)]
        dim = chosen_model(snapshot, settings.model).dim
        tensors: dict[str, npt.NDArray[np.generic]] = {}
        for number, batch in enumerate(Draw(self._columns, settings.batch, seeds).rows(snapshot, dim, tasks)):
            if len(batch.hashes) < 2:
                raise ScoreError(
                    f"{snapshot.store.root} has fewer than two pairs with both embeddings of {settings.model!r}"
                )
            images, texts = batch.vectors
            tensors |= {f"{number}.uids": batch.uids, f"{number}.images": images, f"{number}.texts": texts}
        return State(tensors)

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Load the batches, on the GPU if there is one."""
        return _OpenNegClip(self.name, self._columns, self.settings, state, resolve_device(run))


class _Batch:
    """One batch, on the device."""

    def __init__(self, state: State, number: int, device: str) -> None:
        self.images = normalized(state.tensors[f"{number}.images"]).to(device)  # float32 [batch, dim]
        self.texts = normalized(state.tensors[f"{number}.texts"]).to(device)
        uids = state.tensors[f"{number}.uids"].tolist()
        self._place = {(high, low): place for place, (high, low) in enumerate(uids)}

    def places(self, uids: U64) -> torch.Tensor:
        """The position of each row in the batch. uids [rows, 2] -> [rows].

        A row outside the batch takes the last position, in place of the member with the highest hash.
        """
        last = len(self._place) - 1
        return torch.tensor([self._place.get((high, low), last) for high, low in uids.tolist()])


class _OpenNegClip:
    def __init__(self, name: str, columns: tuple[str, str], settings: NegClipScore, state: State, device: str) -> None:
        self._name, self._columns, self._temperature, self._device = name, columns, settings.temperature, device
        self._batches = [_Batch(state, number, device) for number in range(settings.repeats)]

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns the score of each row."""
        (images, has_image), (texts, has_text) = (read_vectors(rows[column]) for column in self._columns)
        uids = np.stack(key_halves(rows["uid"], "uid"), axis=1)  # [rows, 2]
        scores = np.empty(len(images), np.float32)
        size = max(1, MAX_CELLS // len(self._batches[0].images))
        with torch.inference_mode():
            for start in range(0, len(images), size):
                block = slice(start, start + size)
                image, text = (normalized(each[block]).to(self._device) for each in (images, texts))  # [block, dim]
                found = torch.stack([self._scores(image, text, uids[block], batch) for batch in self._batches])
                scores[block] = found.mean(dim=0).cpu().numpy()
        return pa.table({self._name: float_column(scores, has_image & has_text)})

    def _scores(self, images: torch.Tensor, texts: torch.Tensor, uids: U64, batch: _Batch) -> torch.Tensor:
        """The scores of a block of rows against one batch. float32 [block, dim] twice -> [block].

        The row's own term is factored out of each logarithm: logsumexp = own / T + log(1 + the sum over the others).
        The own term then cancels exactly, so pairs that fit far better than all others keep distinct values near 0.
        """
        own = (images * texts).sum(dim=1, keepdim=True)  # [block, 1]
        places = batch.places(uids).to(self._device)[:, None]  # [block, 1]
        loss = torch.zeros_like(own[:, 0])
        for side, others in ((images, batch.texts), (texts, batch.images)):
            logits = ((side @ others.T - own) / self._temperature).scatter_(1, places, -torch.inf)  # [block, batch]
            loss += torch.nn.functional.softplus(torch.logsumexp(logits, dim=1))
        return -self._temperature / 2 * loss
