"""Tests the measures of pictures against plain transcriptions of their definitions, and that they change as expected
when a picture is changed."""

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from pairmill.pipeline.image.jpeg_quality import jpeg_quality
from pairmill.pipeline.image.measures import (
    WORKING_SIDE,
    Measured,
    border,
    colorfulness,
    exposure,
    measure,
    sharpness,
    working_luma,
    working_pixels,
)
from pairmill.schemas.job.pictures import MEASURES

PAIRS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "pairs"
PHOTOGRAPHS = sorted(PAIRS.rglob("*.jpg"))[::45]


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    return [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in PHOTOGRAPHS]


def measured(picture: Image.Image) -> Measured:
    return measure(np.asarray(picture), b"", MEASURES)


def luma_of(rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.rint(rgb @ [0.299, 0.587, 0.114])


def test_the_measures_equal_their_definitions(photographs: list[Image.Image]) -> None:
    for picture in photographs:
        picture = ImageOps.contain(picture, (WORKING_SIDE, WORKING_SIDE))  # so that `measured` resizes nothing
        rgb = np.asarray(picture, np.float64)
        found = measured(picture)
        luma = luma_of(rgb)
        padded = np.pad(luma, 1, mode="reflect")
        laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * luma
        assert found["sharpness"] == pytest.approx(laplacian.var(), rel=5e-3)  # OpenCV uses fixed-point luma
        assert found["exposure"] == pytest.approx(luma.mean() / 255, abs=1e-3)
        assert found["exposure_dark"] == pytest.approx((luma <= 4).mean(), abs=2e-3)
        assert found["exposure_bright"] == pytest.approx((luma >= 251).mean(), abs=2e-3)
        rg, yb = rgb[..., 0] - rgb[..., 1], (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
        metric = np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
        assert found["colorfulness"] == pytest.approx(metric, rel=1e-4)


def test_a_checkerboard_and_a_plain_color_have_the_values_computed_by_hand() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    assert sharpness(board.astype(np.uint8)) == pytest.approx(1020**2)  # every Laplacian is ±4 * 255
    assert exposure(board.astype(np.uint8)) == (0.5, 0.5, 0.5)
    red = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    assert colorfulness(red) == pytest.approx(0.3 * np.hypot(255, 127.5))
    assert sharpness(red[..., 0]) == 0.0
    assert border(red) == 1.0


def test_the_working_size_limits_the_longer_side_and_never_enlarges() -> None:
    for width, height, small in [
        (640, 480, (256, 192)),
        (30, 20, (30, 20)),
        (20_000, 1, (256, 1)),
        (257, 256, (256, 255)),
    ]:
        pixels = np.zeros((height, width, 3), np.uint8)
        assert working_pixels(pixels).shape[1::-1] == small
        assert working_luma(pixels).shape[::-1] == small
        assert measure(pixels, b"", MEASURES)["border"] == 1.0


@pytest.mark.parametrize("side", [300, 400, 512, 600])
def test_the_sharpness_of_a_photograph_hardly_depends_on_its_size(photographs: list[Image.Image], side: int) -> None:
    large = [picture for picture in photographs if max(picture.size) >= 640]
    assert len(large) >= 5
    for picture in large:
        smaller = ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)
        found = sharpness(working_luma(np.asarray(smaller))) / sharpness(working_luma(np.asarray(picture)))
        assert 0.8 < found < 1.25


CHANGES: list[tuple[str, Callable[[Image.Image, int], Image.Image], str, int]] = [
    ("blurred", lambda picture, step: picture.filter(ImageFilter.GaussianBlur(step)), "sharpness", -1),
    ("darkened", lambda picture, step: ImageEnhance.Brightness(picture).enhance(1 / (1 + step)), "exposure", -1),
    ("darkened", lambda picture, step: ImageEnhance.Brightness(picture).enhance(1 / (1 + step)), "exposure_dark", 1),
    ("brightened", lambda picture, step: ImageEnhance.Brightness(picture).enhance(1 + step), "exposure_bright", 1),
    ("desaturated", lambda picture, step: ImageEnhance.Color(picture).enhance(1 - step / 4), "colorfulness", -1),
    ("given bars", lambda picture, step: ImageOps.expand(picture, (0, 16 * step), "black"), "border", 1),
    ("framed", lambda picture, step: ImageOps.expand(picture, 16 * step, "white"), "border", 1),
]


@pytest.mark.parametrize(("how", "change", "name", "sign"), CHANGES, ids=[f"{each[0]}-{each[2]}" for each in CHANGES])
def test_a_measure_changes_in_one_direction_as_a_picture_is_changed_more(
    photographs: list[Image.Image], how: str, change: Callable[[Image.Image, int], Image.Image], name: str, sign: int
) -> None:
    for picture in photographs[:10]:
        picture = ImageOps.contain(picture, (150, 150))
        values = [float(measured(change(picture, step))[name] or 0) for step in range(4)]
        steps = sign * np.diff(values)
        assert (steps >= 0).all(), (how, values)
        assert steps.sum() > 0 or (how == "desaturated" and values[0] == 0), (how, values)


BARS = [(0, 20, 0, 20), (30, 0, 30, 0), (9, 9, 9, 9), (0, 0, 40, 0), (5, 10, 15, 20)]
"""Widths of the bars in pixels: left, top, right, bottom."""


@pytest.mark.parametrize("color", ["black", "white", (120, 30, 200)])
def test_the_border_is_the_share_of_the_area_that_was_added(photographs: list[Image.Image], color: str) -> None:
    for picture in photographs[:6]:
        body = np.array(picture.resize((160, 120)))
        body[[0, -1], ::2] = body[::2, [0, -1]] = (0, 255, 0)  # so that no bar seems to continue into the picture
        for bars in BARS:
            framed = np.asarray(ImageOps.expand(Image.fromarray(body), bars, color))
            assert border(framed) == pytest.approx(1 - 160 * 120 / (framed.size / 3))


@pytest.mark.parametrize(("quality", "color"), [(75, "black"), (90, "white")])
def test_the_border_is_found_in_jpegs_that_blur_its_edge(
    photographs: list[Image.Image], quality: int, color: str
) -> None:
    for picture in photographs:
        bar = picture.height // 8
        framed = ImageOps.expand(picture, (0, bar), color)
        framed.save(file := io.BytesIO(), "JPEG", quality=quality)
        before, after = border(np.asarray(picture)), measured(Image.open(file))["border"]
        assert after == pytest.approx(1 - (1 - before) * picture.height / framed.height, abs=0.05)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "optimize": True}])
def test_the_measured_quality_of_a_jpeg_is_the_quality_it_was_saved_with(
    photographs: list[Image.Image], options: dict[str, int | bool]
) -> None:
    picture = photographs[0].resize((24, 16))
    for quality in range(1, 101):
        picture.save(file := io.BytesIO(), "JPEG", quality=quality, **options)
        assert jpeg_quality(file.getvalue()) == quality
        _, written = cv2.imencode(".jpg", np.asarray(picture), [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert jpeg_quality(written.tobytes()) == quality
    gray = picture.convert("L")
    gray.save(file := io.BytesIO(), "JPEG", quality=71)
    assert jpeg_quality(file.getvalue()) == 71


def test_jpegs_of_other_encoders_get_the_nearest_quality_and_other_formats_get_none(
    photographs: list[Image.Image],
) -> None:
    picture = photographs[0].resize((24, 16))
    picture.save(file := io.BytesIO(), "JPEG", quality=60)
    tables = Image.open(file).quantization  # type: ignore[attr-defined]
    nudged = [[value + (at % 7 == 3) for at, value in enumerate(table)] for table in tables.values()]
    picture.save(file := io.BytesIO(), "JPEG", qtables=nudged)
    assert abs((jpeg_quality(file.getvalue()) or 0) - 60) <= 1
    for form in ("PNG", "WEBP", "GIF"):
        picture.save(file := io.BytesIO(), form)
        assert jpeg_quality(file.getvalue()) is None


def test_no_input_makes_the_quality_measure_fail(photographs: list[Image.Image]) -> None:
    photographs[0].resize((24, 16)).save(file := io.BytesIO(), "JPEG", quality=88)
    whole = file.getvalue()
    random = np.random.default_rng(5)
    for at in range(700):
        jpeg_quality(whole[:at])
        damaged = bytearray(whole)
        damaged[random.integers(2, 200)] = random.integers(256)
        found = jpeg_quality(bytes(damaged))
        assert found is None or 1 <= found <= 100
    assert jpeg_quality(b"\xff\xd8" + b"\xff" * 1_000_000) is None
    assert jpeg_quality(b"\xff\xd8\xff" + b"\xd8\x00\x02" * 100_000) is None
