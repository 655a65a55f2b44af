"""Converts any Pillow picture to RGB with 8 bits per channel, as it looks on a white page.

Works in bands of rows, so that only the picture and the result are in memory: otherwise, 100 megapixels with alpha
would need four copies.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairmill.pipeline.image.color import is_for_gray, to_srgb

_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_PLAIN_MODES = frozenset({"RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"})
_BAND_PIXELS = 1 << 20
_MAX_TABLE_BITS = 16


class UnsupportedMode(Exception):
    """Pillow has no mode for pixels of this kind, or cannot convert it to RGB (Lab, for example)."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What the header of a grayscale picture says about its values, beyond Pillow's mode."""

    bits: int = 16
    """White is 2 ** bits - 1. Used for grayscale with more than 8 bits."""
    is_signed: bool = False
    """Two's complement: the smallest value is black."""
    is_inverted: bool = False
    """Zero is white."""
    key: int | None = None
    """The transparent value, only for 16 bits; Pillow handles it for up to 8."""

    def table(self) -> npt.NDArray[np.uint8]:
        """The brightness of every value of up to 16 bits: uint8 [2 ** bits]."""
        gray = self.to_gray(np.arange(1 << self.bits))
        if self.key is not None:
            gray[self.key] = 255
        return gray

    def to_gray(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Unsigned integers of `bits` bits -> brightness, uint8, with the same shape."""
        if self.is_signed:
            values = values ^ (1 << (self.bits - 1))
        gray = np.rint(values * (255 / ((1 << self.bits) - 1))).astype(np.uint8)
        return 255 - gray if self.is_inverted else gray


def has_alpha(image: Image.Image) -> bool:
    """Whether pixels can be transparent."""
    return image.mode in _ALPHA_MODES or (image.mode in _PLAIN_MODES and "transparency" in image.info)


def to_rgb(image: Image.Image, samples: Samples, profile: bytes | None) -> npt.NDArray[np.uint8]:
    """A loaded picture as uint8 [height, width, 3]: alpha composited over white, other bit depths scaled, not clipped.

    `profile` is applied only to CMYK, and to colors with alpha before they are composited. Raises UnsupportedMode.
    """
    convert = _converter(image, samples, profile)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, left, band in _bands(image):
        # [rows, columns, 3], or [rows, columns, 1] for grayscale
        pixels[top : top + band.height, left : left + band.width] = convert(band)
    return pixels


def _converter(image: Image.Image, samples: Samples, profile: bytes | None) -> Callable[[Image.Image], Any]:
    mode = image.mode
    if has_alpha(image):
        return lambda band: _over_white(band, profile)
    if mode == "CMYK":
        return lambda band: np.asarray(to_srgb(band, profile) or band.convert("RGB"))
    if mode in ("L", "1") and (samples.is_signed or samples.is_inverted):
        return _looked_up(replace(samples, bits=8))
    if mode in _PLAIN_MODES:
        return lambda band: np.asarray(band.convert("RGB"))
    if mode.startswith("I;16") and samples.bits <= _MAX_TABLE_BITS:
        return _looked_up(samples)
    if mode == "I":
        return lambda band: samples.to_gray(np.asarray(band).view(np.uint32).astype(np.int64))[..., None]
    if mode == "F":
        low, high = _range(image)
        return lambda band: _scale(band, low, high, samples.is_inverted)
    raise UnsupportedMode(f"pixel mode {mode}")


def _looked_up(samples: Samples) -> Callable[[Image.Image], Any]:
    table = samples.table()
    return lambda band: table[np.asarray(band if band.mode != "1" else band.convert("L"))][..., None]


def _bands(image: Image.Image) -> Iterator[tuple[int, int, Image.Image]]:
    """(first row, first column, band) from top to bottom."""
    columns = min(image.width, _BAND_PIXELS)
    rows = max(1, _BAND_PIXELS // columns)
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            box = (left, top, min(left + columns, image.width), min(top + rows, image.height))
            yield top, left, image.crop(box)


def _over_white(band: Image.Image, profile: bytes | None) -> Any:
    if band.mode == "La":  # the only mode that Pillow converts premultiplied gray to
        band = band.convert("LA")
    band = band.convert("RGBA")
    if profile and (converted := to_srgb(band.convert("L" if is_for_gray(profile) else "RGB"), profile)):
        converted.putalpha(band.getchannel("A"))
        band = converted
    return np.asarray(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band))[..., :3]


def over_white_by_key(pixels: npt.NDArray[np.uint8], low: npt.NDArray[np.uint8], key: tuple[int, ...]) -> None:
    """Whiten, in place, every pixel that has the color `key` at 16 bits per channel.

    `pixels` and `low` are the high and low bytes, each uint8 [height, width, 3]."""
    for top in range(0, len(pixels), rows := max(1, _BAND_PIXELS // pixels.shape[1])):
        high, rest = pixels[top : top + rows], low[top : top + rows]
        is_key = np.ones(high.shape[:2], bool)
        for channel, value in enumerate(key):
            is_key &= (high[..., channel] == value >> 8) & (rest[..., channel] == value & 255)
        high[is_key] = 255


def _finite(band: Image.Image) -> npt.NDArray[np.float64]:
    return np.nan_to_num(np.asarray(band, dtype=np.float64), posinf=0.0, neginf=0.0)


def _range(image: Image.Image) -> tuple[float, float]:
    """The values of black and white in floating-point grayscale. Files do not state them, so guess from the extremes:

    0 to 1, 0 to 255 and 0 to 65,535 stay as they are; any other range is stretched from its smallest to largest value.
    """
    extremes = [(values.min(), values.max()) for values in (_finite(band) for _, _, band in _bands(image))]
    low, high = float(min(low for low, _ in extremes)), float(max(high for _, high in extremes))
    for white in (1.0, 255.0, 65_535.0):
        if low >= 0 and high <= white:
            return 0.0, white
    return low, high


def _scale(band: Image.Image, low: float, high: float, is_inverted: bool) -> Any:
    values = (_finite(band) - low) * (255.0 / max(high - low, 1e-12))
    gray = np.rint(values).clip(0, 255).astype(np.uint8)[..., None]
    return 255 - gray if is_inverted else gray
