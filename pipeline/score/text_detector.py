"""Finds text in pictures with PP-OCR's detector, whose weights are part of the package rapidocr (Apache-2.0).

The network computes for each pixel the probability that it is text; regions come out shrunk toward the middle of their
line. The steps from there to boxes follow Liao et al., "Real-time scene text detection with differentiable
binarization", AAAI 2020, section 3.4. The thresholds are PP-OCR's defaults. Nothing is downloaded.
"""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pairmill.pipeline.image.resize import Pixels
from pairmill.pipeline.score.kind import ScoreError

Box = npt.NDArray[np.float32]
"""The four corners of a box, clockwise: float32 [4, 2], x and y as fractions of the picture's width and height."""

SIDE = 512
"""Maximum longer side of the detector's input in pixels, as in T-MARS. Smaller pictures keep their size, because the
detector often mistakes enlarged pictures for text."""

VERSION = 1
"""Version of the steps around the network. Increased when the boxes of a picture change."""

_MULTIPLE = 32  # the network halves its input five times
_IS_TEXT, _IS_BOX = 0.3, 0.6
"""Minimum probability for a pixel to be text, and minimum mean probability for a rectangle to be text."""
_MIN_SIDE = 3
"""Minimum side of a region in pixels of the detector's input."""
_UNCLIP = 1.6
"""Each side of a region is moved outward by this factor times its area / its perimeter, because the network shrinks
lines."""
_MAX_HEIGHT = 1 / 3
"""Maximum height of a line as a share of the picture's shorter side. Without this limit, the network mistakes most of
the area for text in one photograph in four. In 51 photographs, all real text was below 0.2, and all false detections
were above 0.5."""
_MAX_REGIONS = 1_000


@dataclass(frozen=True)
class Weights:
    """The file with the network's weights."""

    path: Path
    sha256: str

    @classmethod
    def find(cls) -> "Weights":
        """The weights in the installed rapidocr package. Raises ScoreError if it is not installed."""
        found = find_spec("rapidocr"), find_spec("onnxruntime")
        if found[0] is None or found[1] is None or found[0].origin is None:
            raise ScoreError("finding text needs additional packages: pip install 'pairmill[text]'")
        files = sorted(Path(found[0].origin).parent.glob("models/PP-OCRv*_det_*.onnx"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise ScoreError(f"rapidocr must contain one text detector, but has {names}; install rapidocr 3.10")
        return cls(files[0], hashlib.sha256(files[0].read_bytes()).hexdigest())


class TextDetector:
    """The network, ready to run on the CPU. Thread-safe; each call takes one thread."""

    def __init__(self, weights: Weights) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # pictures are already processed in parallel
        options.log_severity_level = 3  # only errors
        self._session = onnxruntime.InferenceSession(str(weights.path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, pixels: Pixels) -> list[Box]:
        """The boxes in a picture, uint8 [height, width, 3], largest region first."""
        return list(boxes_of(self.probabilities(pixels)))

    def probabilities(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """The probability of each pixel at the detector's size, float32 [rows, columns]."""
        height, width = pixels.shape[:2]
        scale = min(1.0, SIDE / max(height, width))
        columns, rows = (max(1, round(side * scale / _MULTIPLE)) * _MULTIPLE for side in (width, height))
        scaled = np.asarray(cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)
        planes = scaled[..., ::-1].transpose(2, 0, 1)  # blue first, as OpenCV reads files
        inputs = np.ascontiguousarray(planes[None] / np.float32(127.5) - 1)  # [1, 3, rows, columns]
        (found,) = self._session.run(None, {self._input: inputs})  # [1, 1, rows, columns]
        return np.asarray(found[0, 0], np.float32)


def boxes_of(probabilities: npt.NDArray[np.float32]) -> Iterator[Box]:
    """The smallest rotated rectangles around regions of text, grown back to whole lines.

    `probabilities`: float32 [rows, columns].
    """
    size = np.array(probabilities.shape[::-1], np.float32)  # columns, rows
    is_text = cv2.dilate((probabilities > _IS_TEXT).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(is_text, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    for contour in sorted(contours, key=cv2.contourArea, reverse=True)[:_MAX_REGIONS]:
        middle, (width, height), angle = cv2.minAreaRect(contour)
        if min(width, height) < _MIN_SIDE:
            continue
        grow = 2 * _UNCLIP * width * height / (2 * (width + height))
        if min(width, height) + grow > _MAX_HEIGHT * min(probabilities.shape):
            continue
        if _mean_inside(probabilities, cv2.boxPoints((middle, (width, height), angle))) >= _IS_BOX:
            corners = cv2.boxPoints((middle, (width + grow, height + grow), angle))
            yield np.clip((np.asarray(corners, np.float32) + 0.5) / size, 0, 1)


def text_mask(boxes: list[Box], width: int, height: int) -> npt.NDArray[np.uint8]:
    """A mask that is 1 inside any of the boxes, else 0; uint8 [height, width]."""
    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        cv2.fillConvexPoly(mask, corners_of(box, width, height), 1)
    return mask


def corners_of(box: Box, width: int, height: int) -> npt.NDArray[np.int32]:
    """The pixels at the corners of a box in a picture of this size, as x and y; int32 [4, 2]."""
    return np.asarray(np.rint(box * (width, height) - 0.5).clip(0, (width - 1, height - 1)), np.int32)


def _mean_inside(values: npt.NDArray[np.float32], corners: Any) -> float:
    """The mean of float32 [rows, columns] inside a rectangle with these corners, which may extend beyond the edge."""
    corners = np.rint(corners).clip(0, np.array(values.shape[::-1]) - 1).astype(np.int32)
    left, top, width, height = cv2.boundingRect(corners)
    inside = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(inside, corners - (left, top), 1)
    return float(cv2.mean(values[top : top + height, left : left + width], inside)[0])


_lock = threading.Lock()
_detectors: dict[str, TextDetector] = {}


def detector(weights: Weights) -> TextDetector:
    """The detector, loaded once per process."""
    with _lock:
        if weights.sha256 not in _detectors:
            _detectors[weights.sha256] = TextDetector(weights)
        return _detectors[weights.sha256]
