"""Converts pictures with ICC profiles to sRGB. Without this, pictures from cameras and print shops have wrong colors.

Nearly all embedded profiles are sRGB under some name. Each profile is tested once to see whether it changes
anything, and the answer is cached, so pictures that are sRGB already cost nothing.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from io import BytesIO

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from pairmill.pipeline.image.matrix_profile import matrix_conversion

_MAX_PROFILE_BYTES = 2 << 20
_SAME_LEVELS = 2
"""A profile that shifts no color by more than this (out of 255) counts as sRGB."""

_FAST_LEVELS = 1
"""The faster conversion is used if its results are within this many levels of Little CMS's."""

_BAND_PIXELS = 1 << 20

Pixels = npt.NDArray[np.uint8]

_LEVELS: Pixels = np.arange(256, dtype=np.uint8)[None]
_STEPS = np.linspace(0, 255, 18).astype(np.uint8)
_GRID: Pixels = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS), -1).reshape(18, -1, 3)
"""Colors from the whole RGB cube: [18, 324, 3]."""

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """The picture (RGB, L or CMYK) in sRGB, mode RGB; None if the profile changes nothing or cannot be used."""
    transform = _transform(profile, image.mode) if profile and len(profile) <= _MAX_PROFILE_BYTES else None
    return None if transform is None else ImageCms.applyTransform(image, transform)


def pixels_to_srgb(pixels: Pixels, profile: bytes | None) -> Pixels:
    """uint8 [height, width, 3] in sRGB; the same array if nothing changes. The profile must match these pixels: a
    grayscale profile applies to the single channel that all three repeat."""
    if not profile:
        return pixels
    convert = _conversion(profile) if len(profile) <= _MAX_PROFILE_BYTES else None
    if convert is None:
        return pixels
    converted = np.empty_like(pixels)
    height, width = pixels.shape[:2]
    columns = min(width, _BAND_PIXELS)
    rows = max(1, _BAND_PIXELS // columns)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            band = np.s_[top : top + rows, left : left + columns]
            converted[band] = convert(np.ascontiguousarray(pixels[band]))
    return converted


def changes_nothing(profile: bytes | None) -> bool:
    """Whether this profile leaves pixels unchanged, because it is missing, broken, or sRGB under some name."""
    if not profile or len(profile) > _MAX_PROFILE_BYTES:
        return True
    return _conversion(profile) is None


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
            flags=ImageCms.Flags.NOCACHE,  # Little CMS's one-pixel cache is not thread-safe
        )
    except (ImageCms.PyCMSError, OSError, ValueError):  # a broken profile: the unconverted values are the best guess
        return None
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


@lru_cache(maxsize=16)
def _conversion(profile: bytes) -> Callable[[Pixels], Pixels] | None:
    """Converts uint8 [height, width, 3] to sRGB; None if the profile changes nothing or cannot be used."""
    is_gray = is_for_gray(profile)
    transform = _transform(profile, "L" if is_gray else "RGB")
    if transform is None:
        return None
    if is_gray:
        table = np.asarray(ImageCms.applyTransform(Image.fromarray(_LEVELS), transform))  # [1, 256, 3]
        return lambda pixels: np.asarray(cv2.LUT(pixels, table), np.uint8)
    exact = partial(_with_little_cms, transform)
    fast = matrix_conversion(profile, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if fast is None or np.abs(fast(_GRID).astype(int) - exact(_GRID)).max() > _FAST_LEVELS:
        return exact
    return fast


def _with_little_cms(transform: ImageCms.ImageCmsTransform, pixels: Pixels) -> Pixels:
    return np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), transform), np.uint8)


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    before = Image.fromarray(_GRID if mode == "RGB" else _GRID[..., 0])
    after = np.asarray(ImageCms.applyTransform(before, transform)).astype(int)
    return bool(np.abs(after - np.asarray(before.convert("RGB"))).max() <= _SAME_LEVELS)
