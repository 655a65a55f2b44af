"""Any Pillow picture becomes RGB with 8 bits a channel: what a person would see on a white page."""

from typing import Any

import numpy as np
from PIL import Image

_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
_PLAIN_MODES = frozenset({"RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"})


class UnsupportedMode(Exception):
    """The pixels have a meaning that has no one picture, or one that Pillow cannot convert (Lab)."""


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture as mode RGB. Alpha is laid over white, 16 bits are scaled, not clipped."""
    mode = image.mode
    if mode in _ALPHA_MODES or (mode in _PLAIN_MODES and "transparency" in image.info):
        return _over_white(image.convert("RGBA"))
    if mode == "RGB":
        return image
    if mode in _PLAIN_MODES:
        return image.convert("RGB")
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_scale_to_8_bits(np.asarray(image))).convert("RGB")
    raise UnsupportedMode(f"pixel mode {mode}")


def _over_white(image: Image.Image) -> Image.Image:
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _scale_to_8_bits(values: Any) -> Any:
    """Grey of more than 8 bits. Files do not say how many bits count, so the largest value chooses among the usual.

    8 bits stay, up to 16 are divided by 257, more (and floats) are stretched between the smallest and the largest.
    """
    values = np.nan_to_num(np.asarray(values, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and 255 < high <= 65_535:
        low, high = 0.0, 65_535.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    return np.rint((values - low) * (255.0 / max(high - low, 1e-12))).clip(0, 255).astype(np.uint8)
