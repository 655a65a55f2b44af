"""Scores embeddings with a head: a small network whose weights come from a file (see `head_weights.py`)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.common.files import absolute
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.embeddings import chosen_model, embedding_column, float32_blocks, read_vectors
from pairmill.pipeline.score.head_weights import HeadFile, HeadModel, affine, read_head
from pairmill.pipeline.score.kind import Needs, OneNumber, RowScore, ScoreError, float_column
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import HeadScore, ScoreConfig

_SHORTEST = 1e-12
"""Minimum length to divide by, as in torch.nn.functional.normalize."""
_SMALLEST_DEVIATION = 1e-7
"""Minimum deviation to divide by, as in Keras' Normalization (keras.backend.epsilon())."""


@dataclass(frozen=True)
class Head(OneNumber):
    """The kind `head`. One column: NAME, float32; null where the embedding is null."""

    name: str
    score: ScoreConfig

    @property
    def settings(self) -> HeadScore:
        """The settings of this kind."""
        assert self.score.head is not None
        return self.score.head

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """Fill in the model, the activation and the output, and check that the head fits the model's embeddings."""
        settings, embeddings = self.settings, chosen_model(snapshot, self.settings.model, self.settings.of)
        path = absolute(settings.weights)
        head = read_head(Path(path))
        if head.sizes[0] != embeddings.dim:
            raise ScoreError(
                f"{path}: takes embeddings of {head.sizes[0]:,} dimensions, but those of {embeddings.alias!r} have "
                f"{embeddings.dim:,}; {_remedy(snapshot, head.model)}"
            )
        if settings.check_model and head.model is not None:
            _check_model(path, head.model, embeddings.contract)
        if head.of not in (None, settings.of):
            raise ScoreError(f"{path}: was trained on embeddings of kind {head.of!r}; set `of` to {head.of}")
        found = {
            "weights": path,
            "model": embeddings.alias,
            "activation": _activation(path, settings, head),
            "output": (head.output or "none") if settings.output == "auto" else settings.output,
        }
        return ScoreConfig(head=settings.model_copy(update=found))

    @property
    def needs(self) -> Needs:
        """The embedding to score."""
        return Needs(frozenset({embedding_column(self.settings.model or "", self.settings.of)}))

    @property
    def files(self) -> list[str]:
        """The weights."""
        return [self.settings.weights]

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Read the weights as float32. Layers without activations between them are merged into one layer."""
        head = read_head(Path(self.settings.weights))
        with np.errstate(over="ignore", invalid="ignore"):
            layers = (affine(head.layers),) if self.settings.activation == "none" else head.layers
            if not all(np.isfinite(part.astype(np.float32)).all() for layer in layers for part in layer):
                raise ScoreError(f"{self.settings.weights}: the layers multiply to more than float32 can represent")
        tensors = {
            f"{number}.{part}": tensor.astype(np.float32)
            for number, layer in enumerate(layers)
            for part, tensor in zip(("weight", "bias"), layer, strict=True)
        }
        if head.mean is not None and head.variance is not None:
            deviation = np.maximum(np.sqrt(head.variance), _SMALLEST_DEVIATION)
            tensors |= {"mean": head.mean.astype(np.float32), "deviation": deviation.astype(np.float32)}
        return State(tensors)

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Score blocks of rows with torch on the CPU."""
        return _OpenHead(
            self.name, self.settings, {name: torch.from_numpy(each) for name, each in state.tensors.items()}
        )


@dataclass(frozen=True)
class _OpenHead:
    name: str
    settings: HeadScore
    tensors: dict[str, torch.Tensor]

    @property
    def _is_linear(self) -> bool:
        return "1.weight" not in self.tensors and "mean" not in self.tensors

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns the score of each row."""
        column = rows[embedding_column(self.settings.model or "", self.settings.of)]
        vectors, is_valid = read_vectors(column)  # float16 [rows, dim], [rows]
        scores = np.empty(len(vectors), np.float32)
        with torch.inference_mode():
            for block, inputs in float32_blocks(vectors, self.settings.normalize and not self._is_linear):
                scores[block] = self._score(inputs).numpy()
        return pa.table({self.name: float_column(scores, is_valid)})

    def _score(self, inputs: torch.Tensor) -> torch.Tensor:
        """The scores of a block. float32 [block, dim] -> [block]."""
        if "mean" in self.tensors:
            inputs = (inputs - self.tensors["mean"]) / self.tensors["deviation"]
        if self._is_linear:
            product = inputs @ self.tensors["0.weight"][0]  # [block]
            if self.settings.normalize:  # dividing the product is cheaper than dividing the vectors
                product /= torch.linalg.vector_norm(inputs, dim=1).clamp(min=_SHORTEST)
            return _ACTIVATIONS[self.settings.output](product + self.tensors["0.bias"])
        last = sum(name.endswith(".weight") for name in self.tensors) - 1
        for number in range(last + 1):
            inputs = torch.addmm(self.tensors[f"{number}.bias"], inputs, self.tensors[f"{number}.weight"].T)
            if number < last:
                inputs = _ACTIVATIONS[self.settings.activation](inputs)
        return _ACTIVATIONS[self.settings.output](inputs).flatten()


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda values: values,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}


def _activation(path: str, settings: HeadScore, head: HeadFile) -> str:
    if settings.activation != "auto":
        return settings.activation
    if head.activation is None:
        sizes = "-".join(map(str, head.sizes))
        raise ScoreError(
            f"{path}: has layers of sizes {sizes}, but does not name the activation between them; set activation to "
            "none, relu or sigmoid, and output to none or sigmoid"
        )
    return head.activation


def _remedy(snapshot: Snapshot, model: HeadModel | None) -> str:
    """Advice on how to get the embeddings that a head takes."""
    if model is None:
        return "use another model"
    name = str(model)
    command = pairmill_command("embed", snapshot.store.root, "--add-model", name)
    return f"it was trained on {name}: use that model, or add it with `{command}`"


def _check_model(path: str, model: HeadModel, contract: ScoreContract) -> None:
    """Raise ScoreError if the embeddings are not from the model that the head was trained on."""
    if model.weights_sha256 is not None:
        fits = model.weights_sha256 == contract.weights_sha256
    else:
        fits = contract.name in model.names and contract.pretrained == model.pretrained
    if not fits:
        found = f"{contract.name}:{contract.pretrained}" if contract.pretrained else contract.name
        raise ScoreError(
            f"{path}: was trained on embeddings of {model}, but {contract.alias!r} is {found}; use another model, or "
            "set check_model to false if they are the same weights under another name"
        )
