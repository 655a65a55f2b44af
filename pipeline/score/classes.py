"""Zero-shot classification: finds the classes that a picture or a caption fits best."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.common.files import absolute
from pairmill.pipeline.encode.prompts import IMAGENET
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.embeddings import chosen_model, embedding_column, float32_blocks, read_vectors
from pairmill.pipeline.score.kind import ROUNDING, Floats, Mask, Needs, RowScore, float_column
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ClassesScore, ScoreConfig

Integers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Classes:
    """The kind `classes`. All columns are null where the embedding is null.

    Probabilities are a softmax over the classes with the model's own temperature. For SigLIP, they are a sigmoid for
    each class and do not sum to 1 (Zhai et al. 2023, https://arxiv.org/abs/2303.15343). Classes are sorted by cosine,
    because probabilities round to 1 or 0 long before cosines are equal. Ties go to the class that comes first.
    """

    name: str
    score: ScoreConfig

    @property
    def settings(self) -> ClassesScore:
        """The settings of this kind."""
        assert self.score.classes is not None
        return self.score.classes

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """Fill in the model and check the classes."""
        from pairmill.pipeline.score.class_embeddings import read_classes

        names = self.settings.names if self.settings.names == IMAGENET else absolute(self.settings.names)
        model = chosen_model(snapshot, self.settings.model, self.settings.of).alias
        settings = self.settings.model_copy(update={"names": names, "model": model})
        top = min(settings.top, len(read_classes(settings)))
        return ScoreConfig(classes=settings.model_copy(update={"top": top}))

    @property
    def needs(self) -> Needs:
        """The embedding to classify."""
        return Needs(frozenset({embedding_column(self.settings.model or "", self.settings.of)}))

    @property
    def schema(self) -> pa.Schema:
        """The best class with its index, probability and margin, and the best `top` classes if `top` is above 1."""
        columns = [("", pa.string()), ("_index", pa.int32()), ("_probability", pa.float32()), ("_margin", pa.float32())]
        if self.settings.top > 1:
            columns += [("_top", pa.list_(pa.string())), ("_top_probability", pa.list_(pa.float32()))]
        return pa.schema([pa.field(f"{self.name}{suffix}", kind) for suffix, kind in columns])

    @property
    def files(self) -> list[str]:
        """The file of classes."""
        return [] if self.settings.names == IMAGENET else [str(Path(self.settings.names))]

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Embed the classes with the model of the stored embeddings, in this process."""
        from pairmill.pipeline.encode.clip_model import model_of
        from pairmill.pipeline.score.class_embeddings import embed_classes, read_classes

        contract = chosen_model(snapshot, self.settings.model, self.settings.of).contract
        table = embed_classes(model_of(contract, run), read_classes(self.settings), tasks.on_part)
        return State(
            {"classes": table.embeddings},
            {"names": list(table.names), "logit_scale": table.logit_scale, "logit_bias": table.logit_bias},
        )

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Classify blocks of rows with torch on the CPU."""
        return _OpenClasses(self, state)


class _OpenClasses:
    def __init__(self, kind: Classes, state: State) -> None:
        self._kind, self._settings = kind, kind.settings
        self._classes = torch.from_numpy(state.tensors["classes"].copy())  # float32 [classes, dim]
        names = state.values["names"]
        assert isinstance(names, Sequence)
        self._names = pa.array([str(name) for name in names], pa.string())
        self._scale = float(str(state.values["logit_scale"]))
        bias = state.values["logit_bias"]
        self._bias = None if bias is None else float(str(bias))

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns the best classes of each row."""
        _, best, probability, is_valid = self._best(rows)
        missing = ~is_valid
        columns = [
            self._names.take(pa.array(best[:, 0], mask=missing)),
            pa.array(best[:, 0], pa.int32(), mask=missing),
            float_column(probability[:, 0], is_valid),
            float_column(probability[:, 0] - probability[:, 1], is_valid),
        ]
        if self._settings.top > 1:
            columns += [_lists(self._names.take(pa.array(best.ravel())), best.shape[1], missing)]
            columns += [_lists(pa.array(probability.ravel()), best.shape[1], missing)]
        return pa.Table.from_arrays(columns, schema=self._kind.schema)

    def certain(self, rows: pa.Table) -> dict[str, Mask]:
        """For each column, the rows whose best class or whose order of the `top` classes rounding cannot change."""
        cosines, _, _, is_valid = self._best(rows)
        is_clear: Mask = (cosines[:, :-1] - cosines[:, 1:] > ROUNDING) | ~is_valid[:, None]  # [rows, shown - 1]
        name, is_best = self._kind.name, is_clear[:, 0]
        return {name: is_best, f"{name}_index": is_best, f"{name}_top": np.logical_and.reduce(is_clear, axis=1)}

    def _best(self, rows: pa.Table) -> tuple[Floats, Integers, Floats, Mask]:
        """The best classes of each row: (cosines, class indices, probabilities, each [rows, shown]; whether the row has
        an embedding [rows])."""
        vectors, is_valid = read_vectors(rows[embedding_column(self._settings.model or "", self._settings.of)])
        shown = max(self._settings.top, 2)  # the second-best is needed for the margin
        best = np.zeros((len(vectors), shown), np.int32)
        cosines, probability = (np.zeros((len(vectors), shown), np.float32) for _ in range(2))
        with torch.inference_mode():
            for block, inputs in float32_blocks(vectors, compared_with=len(self._classes)):
                every = inputs @ self._classes.T  # [block, classes]
                values, indices = torch.sort(every, dim=1, descending=True, stable=True)
                values, best[block] = values[:, :shown], indices[:, :shown].numpy()
                cosines[block], probability[block] = values.numpy(), self._probabilities(values, every).numpy()
        return cosines, best, probability, is_valid

    def _probabilities(self, cosines: torch.Tensor, every: torch.Tensor) -> torch.Tensor:
        """The probabilities for `cosines` [block, shown], which are some of the cosines in `every` [block, classes]."""
        logits = self._scale * cosines
        if self._bias is None:
            return torch.exp(logits - torch.logsumexp(self._scale * every, dim=1, keepdim=True))
        return torch.sigmoid(logits + self._bias)


def _lists(values: pa.Array, length: int, missing: Mask) -> pa.Array:
    """Split values into lists of `length` values each; null where `missing` [rows] is True."""
    offsets = np.arange(len(missing) + 1, dtype=np.int32) * length
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(missing))
