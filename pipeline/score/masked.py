"""Compares pictures, with the text in them masked, to their captions, as in T-MARS (Maini et al., arXiv 2307.03132)."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.encode.clip_model import model_of
from pairmill.pipeline.encode.encoder import MAX_RESIZED_PIXELS
from pairmill.pipeline.image.decode import ImageError
from pairmill.pipeline.image.resize import Pixels
from pairmill.pipeline.score.embeddings import read_vectors
from pairmill.pipeline.score.kind import Floats, float_column
from pairmill.pipeline.score.text_detector import Box, corners_of, text_mask
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.pairs import score_column_names
from pairmill.schemas.status import Status

if TYPE_CHECKING:
    from pairmill.pipeline.encode.clip_model import ClipModel

_AROUND = 0.02
"""Width of the surroundings of a box, as a share of the picture's longer side."""

_WHITE = 255.0


@dataclass(frozen=True)
class MaskedModel:
    """The model that made a dataset's similarities."""

    model: "ClipModel"

    @classmethod
    def load(cls, values: object, run: RunConfig) -> "MaskedModel":
        """Load the model of a contract. `values`: from `contract_values`. Raises ModelError if its weights are missing
        here or differ."""
        return cls(model_of(ScoreContract(**values), run))  # type: ignore[arg-type]

    def prepare(self, pixels: Pixels, boxes: list[Box]) -> "npt.NDArray[np.uint8] | None":
        """The model's input with the text painted over, uint8 [3, side, side]; None if there is no text.

        Raises ImageError for a picture that the model cannot process.
        """
        if not boxes:
            return None
        height, width = pixels.shape[:2]
        if self.model.input.resized_pixels(width, height) > MAX_RESIZED_PIXELS:
            raise ImageError(Status.IMAGE_BOMB, f"{width} x {height} pixels is too long and narrow for the model")
        return self.model.input.prepare(painted_over(pixels, boxes)).numpy()

    def similarity(self, rows: pa.Table, inputs: "list[npt.NDArray[np.uint8] | None]") -> pa.Array:
        """The cosine between the masked picture and the caption, float32 [rows].

        Rows whose `inputs` [rows] are None get the stored similarity. Null where the caption has no embedding.
        """
        import torch

        names = score_column_names(self.model.alias)
        stored = rows[names.similarity]
        values = stored.fill_null(np.nan).to_numpy().astype(np.float32)
        texts, has_text = read_vectors(rows[names.text_embedding])
        masked = [row for row, each in enumerate(inputs) if each is not None and has_text[row]]
        if masked:
            stacked = np.stack([each for each, has in zip(inputs, has_text, strict=True) if each is not None and has])
            images = self.model.encode_images(torch.from_numpy(stacked))  # float32 [masked, dim]
            text = texts[masked].astype(np.float32)
            values = values.copy()
            values[masked] = (images * text / np.linalg.norm(text, axis=1, keepdims=True)).sum(axis=1)
        return float_column(values, np.isfinite(values))


def contract_values(contract: ScoreContract) -> dict[str, object]:
    """Convert a contract to JSON values."""
    return asdict(contract)


def painted_over(pixels: Pixels, boxes: list[Box]) -> Pixels:
    """Paint each box in the mean color of its surroundings, ignoring text; uint8 [height, width, 3].

    If all surroundings are text, the color is the mean of the rest of the picture, or white if everything is text.
    """
    height, width = pixels.shape[:2]
    is_text = text_mask(boxes, width, height)
    around = max(1, round(_AROUND * max(height, width)))
    elsewhere = None
    painted = pixels.copy()
    for box in boxes:
        corners = corners_of(box, width, height)
        (left, top), (right, bottom) = corners.min(axis=0) - around, corners.max(axis=0) + around + 1
        left, top = max(0, left), max(0, top)
        here = np.s_[top:bottom, left:right]
        inside = np.zeros(is_text[here].shape, np.uint8)
        cv2.fillConvexPoly(inside, corners - (left, top), 1)
        wide = cv2.dilate(inside, np.ones((2 * around + 1, 2 * around + 1), np.uint8))
        color = _mean(pixels[here], (wide > 0) & (is_text[here] == 0))
        if color is None:
            elsewhere = color = _mean(pixels, is_text == 0) if elsewhere is None else elsewhere
        painted[here][inside > 0] = np.rint(_WHITE if color is None else color)
    return painted


def _mean(pixels: Pixels, where: npt.NDArray[np.bool_]) -> Floats | None:
    """The mean color, float32 [3], of the pixels in `where` [height, width]; None if there are none."""
    return pixels[where].mean(axis=0, dtype=np.float64).astype(np.float32) if where.any() else None
