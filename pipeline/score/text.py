"""Scores pictures by the text in them: its share of the area, its boxes, and the similarity with the text masked."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.embeddings import chosen_model
from pairmill.pipeline.score.kind import LEFT_OUT, Needs, NoFiles, RowScore, ScoreError
from pairmill.pipeline.score.masked import MaskedModel, contract_values
from pairmill.pipeline.score.picture_rows import check_has_pictures, decoding_of, each_picture, images_of, threads_of
from pairmill.pipeline.score.text_detector import VERSION, Box, TextDetector, Weights, detector, text_mask
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig
from pairmill.schemas.job.text import MaskSettings, TextScore
from pairmill.schemas.pairs import score_column_names

_BLOCK_ROWS = 256
"""Rows to score at a time. Their masked pictures are in memory: 40 MB at 224 x 224 pixels."""

_MAX_SIDE = 1_024
"""The share is measured on a mask with at most this many pixels on the longer side."""


@dataclass(frozen=True)
class Text(NoFiles):
    """The kind `text`. Columns: NAME_share, NAME_count and NAME_boxes, null if the picture is missing or does not
    decode; with `mask` also NAME_similarity, which is also null if the row has no caption."""

    name: str
    score: ScoreConfig

    @property
    def settings(self) -> TextScore:
        """The settings of this kind."""
        assert self.score.text is not None
        return self.score.text

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """Fill in the model for `mask`, and check that there are pictures and a detector."""
        check_has_pictures(snapshot)
        Weights.find()
        if self.settings.mask is None:
            return self.score
        model = chosen_model(snapshot, self.settings.mask.model, "text").alias
        return ScoreConfig(text=TextScore(mask=MaskSettings(model=model)))

    @property
    def needs(self) -> Needs:
        """The picture and its checksum; with `mask`, also the caption's embedding and the stored similarity."""
        if self.settings.mask is None:
            return Needs(frozenset({"sha256"}), pictures=True)
        names = score_column_names(self.settings.mask.model or "")
        return Needs(frozenset({"sha256", names.similarity, names.text_embedding}), pictures=True)

    @property
    def schema(self) -> pa.Schema:
        """Three columns, and with `mask` a fourth."""
        return self.settings.columns(self.name)

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Record the checksum of the detector, the contract of the model, and the size limit for pictures."""
        values = {"version": VERSION, "detector_sha256": Weights.find().sha256, **decoding_of(snapshot)}
        if self.settings.mask is not None:
            values["model"] = contract_values(chosen_model(snapshot, self.settings.mask.model, "text").contract)
        return State(values=values)

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Load the detector and the model. Raises ScoreError if the detector is not the one that made the score."""
        weights = Weights.find()
        if (state.values["version"], state.values["detector_sha256"]) != (VERSION, weights.sha256):
            raise ScoreError(
                f"the score {self.name!r} was made with a different text detector than {weights.path.name} of the "
                "installed rapidocr; install the version that made it, or add the score under another name"
            )
        model = None if self.settings.mask is None else MaskedModel.load(state.values["model"], run)
        return OpenText(
            self.settings.columns(self.name),
            detector(weights),
            model,
            ImageProcessor(images_of(state)),
            threads_of(run),
        )


@dataclass(frozen=True)
class _Found:
    """The text found in one picture."""

    share: float
    boxes: list[Box]
    masked: npt.NDArray[np.uint8] | None
    """The model's input for the masked picture; None if there is no text or no model."""


@dataclass(frozen=True)
class OpenText:
    """Finds text on several threads: decoding and the network release the GIL. Thread-safe."""

    schema: pa.Schema
    detector: TextDetector
    model: MaskedModel | None
    processor: ImageProcessor
    threads: int

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns the columns of the score, and LEFT_OUT. Raises LocalFault, and TimeoutError if a decoder hangs."""
        starts = range(0, rows.num_rows, _BLOCK_ROWS)
        blocks = [self._block(rows.slice(start, _BLOCK_ROWS)) for start in starts]
        return pa.concat_tables(blocks) if blocks else self._table({}, pa.array([], pa.bool_()))

    def _block(self, rows: pa.Table) -> pa.Table:
        pictures = each_picture(rows, self._find, self.threads)
        found = pictures.per_row
        share, count, boxes, *_ = self.schema.names
        columns: dict[str, object] = {
            share: [each and each.share for each in found],
            count: [each and len(each.boxes) for each in found],
            boxes: [each and [box.ravel().tolist() for box in each.boxes] for each in found],
        }
        if self.model is not None:
            similarity = self.model.similarity(rows, [None if each is None else each.masked for each in found])
            decoded = pa.array([each is not None for each in found])
            columns[self.schema.names[3]] = pc.if_else(decoded, similarity, None)
        return self._table(columns, pictures.left_out)

    def _table(self, columns: Mapping[str, object], left_out: pa.Array) -> pa.Table:
        arrays = {field.name: pa.array(columns.get(field.name, []), field.type) for field in self.schema}
        return pa.table({**arrays, LEFT_OUT: left_out})

    def _find(self, body: bytes) -> _Found:
        pixels = self.processor.pixels(body)
        boxes = self.detector(pixels)
        height, width = pixels.shape[:2]
        scale = min(1.0, _MAX_SIDE / max(height, width))
        mask = text_mask(boxes, max(1, round(width * scale)), max(1, round(height * scale)))
        masked = None if self.model is None else self.model.prepare(pixels, boxes)
        return _Found(float(mask.mean()), boxes, masked)
