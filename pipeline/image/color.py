"""ICC profiles to sRGB; otherwise pictures from cameras and print shops would have the wrong colors.

Nearly all embedded profiles are sRGB under some name. Whether a profile changes anything is tried once and cached, so
that those pictures cost nothing.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

_MAX_PROFILE_BYTES = 2 << 20
_SAME_LEVELS = 2
"""A profile that shifts no color by more than this (out of 255) counts as sRGB."""

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """The picture (RGB, L or CMYK) in sRGB, mode RGB; None if the profile changes nothing or cannot be used."""
    transform = _transform(profile, image.mode) if profile and len(profile) <= _MAX_PROFILE_BYTES else None
    return None if transform is None else ImageCms.applyTransform(image, transform)


def pixels_to_srgb(pixels: npt.NDArray[np.uint8], profile: bytes | None) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3] in sRGB. A grayscale profile applies to the one channel that all three repeat."""
    if not profile:
        return pixels
    is_gray = _color_space(profile) == "GRAY"
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0])) if is_gray else Image.fromarray(pixels)
    converted = to_srgb(image, profile)
    return pixels if converted is None else np.asarray(converted)


def _color_space(profile: bytes) -> str | None:
    return profile[16:20].decode("latin-1") if len(profile) >= 128 else None  # ICC.1:2022, 7.2.6


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if _MODES.get(_color_space(profile) or "") != mode:
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            flags=ImageCms.Flags.NOCACHE,  # Little CMS's cache of one pixel is not thread-safe
        )
    except (ImageCms.PyCMSError, OSError, ValueError):  # broken: the numbers are the best guess
        return None
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(18, -1, 3)  # [18, 324, RGB]
    before = Image.fromarray(grid if mode == "RGB" else grid[..., 0])
    after = np.asarray(ImageCms.applyTransform(before, transform)).astype(int)
    return bool(np.abs(after - np.asarray(before.convert("RGB"))).max() <= _SAME_LEVELS)
