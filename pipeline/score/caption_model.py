"""Generates captions of pictures with a CoCa model, and computes their similarity to the pictures."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pairmill.pipeline.columns.caption_choice import BEST, ORIGINAL, similarity_column
from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.image.decode import ImageError
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.embeddings import chosen_model, embedding_column, float32_blocks, read_vectors
from pairmill.pipeline.score.kind import (
    LEFT_OUT,
    PICTURE,
    Floats,
    Mask,
    Needs,
    NoFiles,
    RowScore,
    ScoreError,
    float_column,
)
from pairmill.pipeline.select.tasks import Tasks
from pairmill.pipeline.source.clean_captions import clean_captions
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import CaptionModelScore, ScoreConfig

if TYPE_CHECKING:
    from pairmill.pipeline.encode.clip_model import ClipModel
    from pairmill.pipeline.encode.coca import CocaModel

_BLOCK_ROWS = 256
"""Pictures to decode at a time: 40 MB at 224 pixels."""

_WEIGHTS, _MAX_PIXELS, _SIMILARITY = "weights_sha256", "max_pixels", "similarity"
"""Keys of the state's values."""


@dataclass(frozen=True)
class CaptionModel(NoFiles):
    """The kind `caption_model`. Columns: NAME, string; with `similarity` also NAME_similarity, float32.

    Null where there is no picture or the model generates no text. The similarity is also null where the picture's
    embedding is null.
    """

    name: str
    score: ScoreConfig

    @property
    def settings(self) -> CaptionModelScore:
        """The settings of this kind."""
        assert self.score.caption_model is not None
        return self.score.caption_model

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """Make the paths absolute, and check the model for the similarity."""
        settings = self.settings
        if self.name in (ORIGINAL, BEST):
            raise ScoreError(f"caption={self.name} has a meaning of its own; choose another name for the score")
        if settings.similarity is not None:
            chosen_model(snapshot, settings.similarity)
        from pairmill.pipeline.encode.weights import located

        found = located(_model(settings))
        paths = {"model": found.name, "pretrained": found.pretrained}
        return ScoreConfig(caption_model=settings.model_copy(update=paths))

    @property
    def needs(self) -> Needs:
        """The picture and, for the similarity, its embedding."""
        alias = self.settings.similarity
        return Needs(frozenset() if alias is None else frozenset({embedding_column(alias, "image")}), pictures=True)

    @property
    def schema(self) -> pa.Schema:
        """The caption and, with `similarity`, its similarity to the picture."""
        similarity = [pa.field(similarity_column(self.name), pa.float32())] if self.settings.similarity else []
        return pa.schema([pa.field(self.name, pa.string()), *similarity])

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Record the checksums of the weights and the size limit for pictures."""
        coca = _coca(self.settings, run)
        values: dict[str, object] = {
            _WEIGHTS: coca.contract.weights_sha256,
            _MAX_PIXELS: snapshot.plan.job.images.max_pixels,
        }
        if self.settings.similarity is not None:
            contract = chosen_model(snapshot, self.settings.similarity).contract
            names = ("name", "pretrained", "alias", "quick_gelu", _WEIGHTS)
            values[_SIMILARITY] = {name: getattr(contract, name) for name in names}
        return State(values=values)

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Load the models. Raises ModelError, and ScoreError if their weights have changed."""
        # Ray gives torch one thread per logical CPU of the actor, but logical CPUs only serve scheduling
        if run.device != "cuda":
            torch.set_num_threads(run.encode_threads or os.cpu_count() or 1)
        coca = _coca(self.settings, run)
        _check(self.settings.model, coca.contract.weights_sha256, state.values[_WEIGHTS])
        images = ImagesConfig.model_validate({"max_pixels": state.values[_MAX_PIXELS]})
        return _OpenCaptionModel(self, coca, ImageProcessor(images), _similarity_model(state, run))


@dataclass(frozen=True)
class _OpenCaptionModel:
    kind: CaptionModel
    coca: "CocaModel"
    processor: ImageProcessor
    model: "ClipModel | None"

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns a caption for each row (with `similarity`, also its similarity), and LEFT_OUT."""
        pictures = rows[PICTURE]
        starts = range(0, max(len(pictures), 1), _BLOCK_ROWS)
        parts = [self._captions(pictures.slice(start, _BLOCK_ROWS).to_pylist()) for start in starts]
        captions = pa.concat_arrays([part for part, _ in parts])
        columns = {self.kind.name: captions, LEFT_OUT: pa.array(np.concatenate([left_out for _, left_out in parts]))}
        if self.model is not None and self.kind.settings.similarity is not None:
            stored = rows[embedding_column(self.kind.settings.similarity, "image")]
            columns[similarity_column(self.kind.name)] = _similarities(self.model, captions, stored)
        return pa.table(columns)

    def _captions(self, pictures: Sequence[bytes | None]) -> tuple[pa.Array, Mask]:
        """(captions [pictures], whether each picture fails to decode [pictures])."""
        inputs, rows, left_out = [], [], np.zeros(len(pictures), np.bool_)
        for row, picture in enumerate(pictures):
            if picture is None:
                continue
            try:
                inputs.append(self.coca.input.prepare(self.processor.pixels(picture)))
            except ImageError:
                left_out[row] = True
                continue
            rows.append(row)
        if not rows:
            return pa.nulls(len(pictures), pa.string()), left_out
        written = clean_captions(pa.array(self.coca.write_captions(torch.stack(inputs)), pa.string()))
        written = pc.if_else(pc.equal(written, ""), None, written)
        places = np.full(len(pictures), -1)
        places[rows] = np.arange(len(rows))
        return written.take(pa.array(places, mask=places < 0)), left_out


def _similarities(model: "ClipModel", captions: pa.Array, stored: pa.ChunkedArray) -> pa.Array:
    """The cosine between each caption's embedding and the stored embedding of its picture, float32.

    Null if either is missing.
    """
    from pairmill.pipeline.encode.clip_model import is_unit

    vectors, is_valid = read_vectors(stored)  # float16 [rows, dim], [rows]
    rows = np.flatnonzero(captions.is_valid().to_numpy(zero_copy_only=False))
    text = np.zeros((len(captions), vectors.shape[1]), np.float32)
    if len(rows):
        text[rows] = model.encode_captions(captions.drop_null().to_pylist())
    similarity: Floats = np.zeros(len(captions), np.float32)
    for block, image in float32_blocks(vectors):
        similarity[block] = np.einsum("nd,nd->n", image.numpy(), text[block])
    return float_column(similarity, is_valid & is_unit(text))


def _coca(settings: CaptionModelScore, run: RunConfig) -> "CocaModel":
    from pairmill.pipeline.encode.coca import CocaModel

    return CocaModel(_model(settings), run, settings.max_tokens)


def _model(settings: CaptionModelScore) -> ModelConfig:
    return ModelConfig(name=settings.model, pretrained=settings.pretrained, alias="coca", dtype="float32")


def _similarity_model(state: State, run: RunConfig) -> "ClipModel | None":
    contract: Any = state.values.get(_SIMILARITY)
    if contract is None:
        return None
    from pairmill.pipeline.encode.clip_model import load_model

    names = {"name", "pretrained", "alias", "quick_gelu"} & set(contract)
    # Always float32, whatever dtype the dataset's embeddings were computed in, so that results match on every device
    model = load_model(ModelConfig(**{name: contract[name] for name in names}, dtype="float32"), run)
    _check(contract["alias"], model.contract.weights_sha256, contract[_WEIGHTS])
    return model


def _check(name: str, found: str, expected: object) -> None:
    if found != expected:
        raise ScoreError(
            f"the weights of {name} have changed since the score was added; add the score again under another name"
        )
