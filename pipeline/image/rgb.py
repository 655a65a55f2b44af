"""Any Pillow picture becomes RGB with 8 bits a channel, as a person would see it on a white page.

It is converted in bands of rows, so that only the picture and the result are in memory: 100 megapixels with alpha
would take four copies otherwise.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pairmill.pipeline.image.color import to_srgb

_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_PLAIN_MODES = frozenset({"RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"})
_BAND_PIXELS = 1 << 20


class UnsupportedMode(Exception):
    """Pillow cannot convert pixels of this mode to RGB (Lab, for one)."""


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """A loaded picture as uint8 [height, width, 3]: alpha composited over white, 16 bits scaled, not clipped.

    Raises UnsupportedMode."""
    convert = _converter(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, band in _bands(image):
        pixels[top : top + band.height] = convert(band)  # [rows, width, 3], or [rows, width, 1] for grayscale
    return pixels


def _converter(image: Image.Image) -> Callable[[Image.Image], Any]:
    mode = image.mode
    if mode in _ALPHA_MODES or (mode in _PLAIN_MODES and "transparency" in image.info):
        return _over_white
    if mode == "CMYK":
        profile = image.info.get("icc_profile")
        return lambda band: np.asarray(to_srgb(band, profile) or band.convert("RGB"))
    if mode in _PLAIN_MODES:
        return lambda band: np.asarray(band.convert("RGB"))
    if mode.startswith("I") or mode == "F":
        low, high = _range(image)
        return lambda band: _scaled(band, low, high)
    raise UnsupportedMode(f"pixel mode {mode}")


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, band) from top to bottom."""
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _over_white(band: Image.Image) -> Any:
    return np.asarray(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band.convert("RGBA")))[..., :3]


def _finite(band: Image.Image) -> npt.NDArray[np.float64]:
    return np.nan_to_num(np.asarray(band, dtype=np.float64), posinf=0.0, neginf=0.0)


def _range(image: Image.Image) -> tuple[float, float]:
    """The values of black and white in grayscale of more than 8 bits. Files do not say, so the largest value decides:

    8 bits stay, up to 16 are divided by 257, more (and floats) are stretched between the smallest and the largest.
    """
    extremes = [(values.min(), values.max()) for values in (_finite(band) for _, band in _bands(image))]
    low, high = float(min(low for low, _ in extremes)), float(max(high for _, high in extremes))
    if low >= 0 and 255 < high <= 65_535:
        return 0.0, 65_535.0
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    if low >= 0 and high <= 255:
        return 0.0, 255.0
    return low, high


def _scaled(band: Image.Image, low: float, high: float) -> Any:
    values = (_finite(band) - low) * (255.0 / max(high - low, 1e-12))
    return np.rint(values).clip(0, 255).astype(np.uint8)[..., None]
