"""Converts pictures with ICC profiles to sRGB. Otherwise pictures from cameras and print shops would have wrong colors.

Nearly all embedded profiles are sRGB under some name. Each profile is tested once for whether it changes anything,
and the answer is cached, so those pictures cost nothing.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

_MAX_PROFILE_BYTES = 2 << 20
_SAME_LEVELS = 2
"""A profile that shifts no color by more than this (out of 255) counts as sRGB."""

_BAND_PIXELS = 1 << 20

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """The picture (RGB, L or CMYK) in sRGB, mode RGB; None if the profile changes nothing or cannot be used."""
    transform = _transform(profile, image.mode) if profile and len(profile) <= _MAX_PROFILE_BYTES else None
    return None if transform is None else ImageCms.applyTransform(image, transform)


def pixels_to_srgb(pixels: npt.NDArray[np.uint8], profile: bytes | None) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3] in sRGB; the same array if nothing changes. The profile must be for these pixels: a
    grayscale profile applies to the one channel that all three repeat."""
    if not profile:
        return pixels
    is_gray = is_for_gray(profile)
    transform = _transform(profile, "L" if is_gray else "RGB") if len(profile) <= _MAX_PROFILE_BYTES else None
    if transform is None:
        return pixels
    converted = np.empty_like(pixels)
    height, width = pixels.shape[:2]
    columns = min(width, _BAND_PIXELS)
    rows = max(1, _BAND_PIXELS // columns)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            band = np.s_[top : top + rows, left : left + columns]
            image = Image.fromarray(np.ascontiguousarray(pixels[band][..., 0] if is_gray else pixels[band]))
            converted[band] = np.asarray(ImageCms.applyTransform(image, transform))
    return converted


def changes_nothing(profile: bytes | None) -> bool:
    """Whether pixels stay the same with this profile, because it is missing, broken or sRGB under some name."""
    if not profile or len(profile) > _MAX_PROFILE_BYTES:
        return True
    return _transform(profile, "L" if is_for_gray(profile) else "RGB") is None


def is_for_gray(profile: bytes) -> bool:
    """Whether the profile describes grayscale."""
    return color_space(profile) == "GRAY"


def color_space(profile: bytes) -> str | None:
    """The profile's data color space: `RGB `, `GRAY`, `CMYK`, ... (ICC.1:2022, 7.2.6); None if it is truncated."""
    return profile[16:20].decode("latin-1") if len(profile) >= 128 else None


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if _MODES.get(color_space(profile) or "") != mode:
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            flags=ImageCms.Flags.NOCACHE,  # Little CMS's cache of one pixel is not thread-safe
        )
    except (ImageCms.PyCMSError, OSError, ValueError):  # a broken profile: the unconverted values are the best guess
        return None
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(18, -1, 3)  # [18, 324, RGB]
    before = Image.fromarray(grid if mode == "RGB" else grid[..., 0])
    after = np.asarray(ImageCms.applyTransform(before, transform)).astype(int)
    return bool(np.abs(after - np.asarray(before.convert("RGB"))).max() <= _SAME_LEVELS)
