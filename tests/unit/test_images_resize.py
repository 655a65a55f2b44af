"""Compares sizes and resize modes with img2dataset's own Resizer."""

import importlib
import io
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.image.resize import plan_resize, resize
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status

MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
PHOTOGRAPHS = Path(__file__).parents[2].parent / "shared" / "data" / "pairs"
SIDES = (1, 2, 3, 31, 63, 64, 65, 100, 127, 128, 129, 333)


@pytest.fixture(scope="module")
def resizer() -> Any:
    """img2dataset's Resizer. Importing it also imports albumentations and the deprecated imghdr."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
        warnings.filterwarnings("ignore", message="'?imghdr'? (is deprecated|was removed)", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="albumentations")
        warnings.filterwarnings("ignore", category=UserWarning, module="pydantic")
        return importlib.import_module("img2dataset.resizer").Resizer


def expected_size(width: int, height: int, size: int, mode: str, only_if_bigger: bool) -> tuple[int, int]:
    """The size according to img2dataset's README."""
    if mode == "no":
        return width, height
    side = min(width, height) if mode in ("keep_ratio", "center_crop") else max(width, height)
    if only_if_bigger and side <= size:
        return width, height
    if mode in ("border", "center_crop"):
        return size, size
    return max(1, round(width * size / side)), max(1, round(height * size / side))


@pytest.mark.parametrize("only_if_bigger", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_sizes_match_img2dataset_on_a_grid_of_sizes(mode: str, only_if_bigger: bool) -> None:
    config = ImagesConfig(size=64, resize_mode=mode, resize_only_if_bigger=only_if_bigger)  # type: ignore[arg-type]
    for width, height in product(SIDES, SIDES):
        out = resize(np.zeros((height, width, 3), np.uint8), plan_resize(width, height, config), config)
        expected = expected_size(width, height, 64, mode, only_if_bigger)
        assert (out.shape[1], out.shape[0]) == expected, (width, height)


@pytest.mark.parametrize("only_if_bigger", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:value is deprecated, use fill:DeprecationWarning")  # img2dataset's PadIfNeeded
def test_resized_pictures_look_like_those_of_img2dataset(resizer: Any, mode: str, only_if_bigger: bool) -> None:
    settings = {"size": 64, "resize_mode": mode, "resize_only_if_bigger": only_if_bigger, "format": "png"}
    processor = ImageProcessor(ImagesConfig(**settings))  # type: ignore[arg-type]
    theirs = resizer(64, mode, only_if_bigger, encode_format="png", encode_quality=1)
    for width, height in (
        (40, 30),
        (30, 40),
        (64, 64),
        (65, 64),
        (100, 100),
        (127, 97),
        (97, 300),
        (333, 20),
        (200, 1),
    ):
        noise = np.random.default_rng(width).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
        body = cv2.imencode(".png", cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))[1].tobytes()
        picture = processor.process(body)
        image, their_width, their_height, *original, error = theirs(io.BytesIO(body))
        assert error is None
        assert (picture.width, picture.height) == (their_width, their_height), (width, height)
        assert [picture.original_width, picture.original_height] == original
        ours, other = (
            np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (picture.image or b"", image)
        )
        assert cv2.PSNR(ours, other) >= 32, (width, height)  # img2dataset shrinks in one step, pairmill in several


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"the photographs are not at {PHOTOGRAPHS}")
@pytest.mark.parametrize("size", [512, 440, 400, 330, 300, 256, 200, 150])
def test_shrinking_is_as_good_as_plain_area_averaging(size: int) -> None:
    config = ImagesConfig(size=size)
    ours, area = [], []
    for path in sorted((PHOTOGRAPHS / "coco").rglob("*.jpg"))[::20]:
        image = Image.open(path).convert("RGB")
        target = plan_resize(*image.size, config)
        if target is None:
            continue
        shape = (target.width, target.height)
        good = np.asarray(image.resize(shape, Image.Resampling.LANCZOS))
        ours.append(cv2.PSNR(resize(np.asarray(image), target, config), good))
        area.append(cv2.PSNR(cv2.resize(np.asarray(image), shape, interpolation=cv2.INTER_AREA), good))
    assert len(ours) > 5
    assert np.median(ours) > np.median(area) - 1.2
    assert min(ours) > min(area) - 2


def test_the_border_is_white_and_on_both_sides() -> None:
    config = ImagesConfig(size=10, resize_mode="border")
    out = resize(np.zeros((7, 20, 3), np.uint8), plan_resize(20, 7, config), config)
    assert out[:, 0, 0].tolist() == [255, 255, 255, 0, 0, 0, 0, 255, 255, 255]


def test_the_crop_is_centered() -> None:
    config = ImagesConfig(size=4, resize_mode="center_crop")
    pixels = np.repeat(np.arange(40, dtype=np.uint8)[None, :, None], 8, 0).repeat(3, 2)
    out = resize(pixels, plan_resize(40, 8, config), config)
    assert out.shape == (4, 4, 3)
    assert 15 <= out.min() <= out.max() <= 24


def test_a_thin_picture_is_not_enlarged_into_a_bomb() -> None:
    file = io.BytesIO()
    Image.new("RGB", (1, 2000)).save(file, "PNG")
    config = ImagesConfig(size=16_384, resize_mode="keep_ratio", resize_only_if_bigger=False)
    picture = ImageProcessor(config).process(file.getvalue())
    assert picture.status is Status.IMAGE_BOMB
    assert picture.detail == "would be 16384 x 32768000 pixels once resized"
