"""Tests that matrix profiles are applied by Little CMS, or with tables that stay within one level of its result."""

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pairmill.pipeline.image.color import changes_nothing, pixels_to_srgb
from pairmill.pipeline.image.matrix_profile import matrix_conversion

PAIRS = Path(__file__).parents[2].parent / "shared" / "data" / "pairs"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

_AXIS = np.linspace(0, 255, 52).astype(np.uint8)
COLORS = np.stack(np.meshgrid(_AXIS, _AXIS, _AXIS), -1).reshape(52, -1, 3)
"""140,608 colors from the whole range: 0, 5, 10, ... in each channel."""

ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491))
"""XYZ of red, green and blue under D50, as in the profiles of these color spaces."""


def fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65_536) for number in numbers))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


def table(points: int, power: float) -> bytes:
    values = (np.linspace(0, 1, points) ** power * 65_535).round().astype(">u2").tobytes()
    return b"curv\0\0\0\0" + struct.pack(">I", points) + values


def parametric(kind: int, *numbers: float) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + fixed(*numbers)


def profile(primaries: tuple[tuple[float, ...], ...], *curves: bytes) -> bytes:
    """A version 2.4 display profile. `curves`: one for all channels, or one for each."""
    curves = curves * 3 if len(curves) == 1 else curves
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249), b"desc": b"desc" + b"\0" * 88}
    tags[b"cprt"] = b"text\0\0\0\0none\0\0\0\0"
    for channel, color, curve in zip("rgb", primaries, curves, strict=True):
        tags[f"{channel}XYZ".encode()] = b"XYZ \0\0\0\0" + fixed(*color)
        tags[f"{channel}TRC".encode()] = curve + b"\0" * (-len(curve) % 4)
    offset, entries, data = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        entries += struct.pack(">4sII", name, offset + len(data), len(value))
        data += value
    header = struct.pack(">I4sI4s4s4s", offset + len(data), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header = header.ljust(36, b"\0") + b"acsp" + b"\0" * 28 + fixed(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + data


def little_cms(pixels: np.ndarray, icc: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    return np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), transform))


PROFILES = {
    "Adobe RGB": profile(ADOBE_RGB, gamma(2.2)),
    "Display P3": profile(DISPLAY_P3, parametric(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)),
    "ProPhoto": profile(PROPHOTO, gamma(1.8)),
    "linear": profile(ADOBE_RGB, b"curv" + b"\0" * 8),
    "a table of light": profile(DISPLAY_P3, table(1024, 1.8)),
    "a power": profile(ADOBE_RGB, parametric(0, 1.8)),
    "a power with a start": profile(ADOBE_RGB, parametric(1, 2.0, 1.1, -0.1)),
    "a power above a constant": profile(ADOBE_RGB, parametric(2, 2.0, 1.05, -0.1, 0.02)),
    "two pieces with constants": profile(ADOBE_RGB, parametric(4, 2.2, 0.95, 0.05, 0.08, 0.04, 0.0, 0.0)),
    "three curves": profile(DISPLAY_P3, gamma(1.8), gamma(2.2), table(17, 2.4)),
}


LEFT_TO_LITTLE_CMS = {"a power above a constant"}  # here, Little CMS does not follow ICC.1


@pytest.mark.parametrize("name", PROFILES)
def test_matrix_profiles_are_converted_within_one_level_of_little_cms(name: str) -> None:
    expected = little_cms(COLORS, PROFILES[name]).astype(int)
    assert np.abs(pixels_to_srgb(COLORS, PROFILES[name]).astype(int) - expected).max() <= 1
    fast = matrix_conversion(PROFILES[name], SRGB)
    assert fast is not None
    is_fast = np.abs(fast(COLORS).astype(int) - expected).max() <= 1
    assert is_fast == (name not in LEFT_TO_LITTLE_CMS)


@pytest.mark.skipif(not PAIRS.is_dir(), reason=f"the photographs are not at {PAIRS}")
def test_profiles_of_real_photographs_are_converted_within_one_level_of_little_cms() -> None:
    found = set()
    for path in PAIRS.glob("coco/**/*.jpg"):
        with Image.open(path) as opened:
            found.add(opened.info.get("icc_profile"))
    changing = [icc for icc in found if icc and icc[16:20] == b"RGB " and not changes_nothing(icc)]
    for icc in changing:
        difference = np.abs(pixels_to_srgb(COLORS, icc).astype(int) - little_cms(COLORS, icc))
        assert difference.max() <= 1
        assert matrix_conversion(icc, SRGB) is not None
    assert len(changing) > 5


def test_broken_profiles_are_converted_nearly_as_by_little_cms() -> None:
    """Whatever is wrong with a profile, the result must be close to Little CMS's."""
    rng = random.Random(4)
    seeds, used = list(PROFILES.values()), 0
    for _ in range(120):
        mutated = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        icc = bytes(mutated)
        if changes_nothing(icc):
            continue
        used += 1
        assert np.abs(pixels_to_srgb(COLORS[::4], icc).astype(int) - little_cms(COLORS[::4], icc)).max() <= 3
    assert used > 30


def test_gray_profiles_are_converted_exactly_as_by_little_cms() -> None:
    gray = Image.linear_gradient("L")
    tags = profile(ADOBE_RGB, gamma(1.8)).replace(b"RGB ", b"GRAY", 1).replace(b"rTRC", b"kTRC", 1)
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(tags)), ImageCms.createProfile("sRGB"), "L", "RGB"
    )
    expected = np.asarray(ImageCms.applyTransform(gray, transform))
    assert np.array_equal(pixels_to_srgb(np.asarray(gray.convert("RGB")), tags), expected)
    assert not np.array_equal(expected[..., 0], np.asarray(gray))
