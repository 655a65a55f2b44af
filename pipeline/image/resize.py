"""THE place where pictures are resized, to the same sizes and with the same modes as in img2dataset's `Resizer`.

Source: img2dataset/resizer.py 1.47 (MIT), which calls albumentations' SmallestMaxSize, LongestMaxSize, CenterCrop and
PadIfNeeded. The arithmetic is the same, so both produce pictures of the same size.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pairmill.schemas.job.images import ImagesConfig

Pixels = npt.NDArray[np.uint8]
"""uint8 [height, width, 3], RGB."""

_WHITE = (255, 255, 255)

_LINEAR_ALONE = 4 / 3
"""Down to three quarters of the size, bilinear samples cover every pixel, as averaging does."""

_LINEAR_AT_MOST = 1.5
"""Maximum pixels per sample in the bilinear step before the averaging steps. At 2, photographs lost up to 2.5 dB
compared with INTER_AREA; at 1.6, 1.5 dB for a total factor of 3.2; at 1.5, less than 1.2 dB, which a test checks."""

_IN_STEPS_UP_TO = 16_000_000
"""Pictures with more pixels than this are shrunk in one step: the result of a first step can be larger than the picture
and would take too much memory."""


@dataclass(frozen=True, slots=True)
class Target:
    """Scale to width x height pixels; then crop or pad to side x side, if side is given."""

    width: int
    height: int
    side: int | None = None


def plan_resize(width: int, height: int, config: ImagesConfig) -> Target | None:
    """How to resize a picture of this size (in pixels, with the orientation applied); None to leave it as it is."""
    mode = config.resize_mode
    if mode == "no":
        return None
    measured = min(width, height) if mode in ("keep_ratio", "center_crop") else max(width, height)
    if config.resize_only_if_bigger and measured <= config.size:
        return None
    scale = config.size / measured
    side = config.size if mode in ("center_crop", "border") else None
    return Target(max(1, round(width * scale)), max(1, round(height * scale)), side)


def resize(pixels: Pixels, target: Target | None, config: ImagesConfig) -> Pixels:
    """uint8 [height, width, 3] -> [target height, target width, 3], or [side, side, 3]; unchanged if `target` is None.

    Shrinks by averaging and enlarges with Lanczos."""
    if target is None:
        return pixels
    height, width = pixels.shape[:2]
    if width * height > target.width * target.height:
        pixels = _shrink(pixels, target.width, target.height)
    elif (width, height) != (target.width, target.height):
        pixels = _scale(pixels, target.width, target.height, cv2.INTER_LANCZOS4)
    if target.side is None:
        return pixels
    return _center_crop(pixels, target.side) if config.resize_mode == "center_crop" else _pad(pixels, target.side)


def _shrink(pixels: Pixels, to_width: int, to_height: int) -> Pixels:
    """Average over areas, in steps for which OpenCV has vector code: INTER_LINEAR to the target size times a power of
    two, then exact halving. INTER_AREA by other factors takes up to three times as long as decoding the JPEG.
    See docs/decisions/005."""
    height, width = pixels.shape[:2]
    ratio = max(width / to_width, height / to_height)
    halvings = 0 if ratio <= _LINEAR_ALONE else max(1, math.ceil(math.log2(ratio / _LINEAR_AT_MOST)))
    is_strip = to_width * to_height << 2 * halvings > 2 * width * height  # only one side is too large
    if is_strip or width * height > _IN_STEPS_UP_TO:
        return _scale(pixels, to_width, to_height, cv2.INTER_AREA)
    pixels = _scale(pixels, to_width << halvings, to_height << halvings, cv2.INTER_LINEAR)
    for left in reversed(range(halvings)):
        pixels = _scale(pixels, to_width << left, to_height << left, cv2.INTER_AREA)
    return pixels


def _scale(pixels: Pixels, width: int, height: int, interpolation: int) -> Pixels:
    return _array(cv2.resize(pixels, (width, height), interpolation=interpolation))


def _center_crop(pixels: Pixels, side: int) -> Pixels:
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _pad(pixels: Pixels, side: int) -> Pixels:
    down, right = side - pixels.shape[0], side - pixels.shape[1]
    top, left = down // 2, right // 2
    border = cv2.BORDER_CONSTANT
    return _array(cv2.copyMakeBorder(pixels, top, down - top, left, right - left, border, value=_WHITE))


def _array(value: Any) -> Pixels:
    return np.asarray(value, dtype=np.uint8)
