"""Tests real files: each awkward file from other projects' tests gets a Status, and photographs keep their quality."""

import contextlib
import csv
import io
import time
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms, ImageOps

from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "awkward"


def _manifest() -> list[tuple[str, str]]:
    if not FOLDER.is_dir():
        return []
    with (FOLDER / "manifest.csv").open(encoding="utf-8") as file:
        return [(row["file"], row["expect"]) for row in csv.DictReader(file)]


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the awkward pictures are not at {FOLDER}")
@pytest.mark.parametrize(("name", "expect"), _manifest())
def test_awkward_files_get_the_status_that_their_manifest_expects(name: str, expect: str) -> None:
    body = (FOLDER / name).read_bytes()
    started = time.process_time()
    picture = ImageProcessor(ImagesConfig()).process(body)
    assert time.process_time() - started < 20
    if expect in ("error", "reject"):
        assert picture.status is not Status.OK
    if expect == "decode":
        assert picture.status is Status.OK, picture.detail
        size = picture.original_width, picture.original_height
        assert size == ImageOps.exif_transpose(Image.open(io.BytesIO(body))).size
    assert (picture.image is None) == (picture.status is not Status.OK)
    assert len(picture.detail or "") <= 200


@lru_cache(1)
def reference(body: bytes) -> npt.NDArray[np.uint8]:
    """The correct pixels, decoded by Pillow alone at full size: orientation applied, 8 bits, alpha over white, sRGB."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.rint(values * (255 / (65_535 if values.max() > 255 else 255))).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    if profile and image.mode in ("RGB", "L", "CMYK"):
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a broken profile, or one for other modes
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return np.asarray(image.convert("RGB"))


def likeness(body: bytes, images_format: str = "jpg") -> float | None:
    """PSNR in dB of the stored picture against the reference, at full size; None if no picture is stored."""
    picture = ImageProcessor(ImagesConfig(resize_mode="no", format=images_format)).process(body)
    if picture.image is None:
        return None
    return float(cv2.PSNR(np.asarray(Image.open(io.BytesIO(picture.image)).convert("RGB")), reference(body)))


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the awkward pictures are not at {FOLDER}")
@pytest.mark.parametrize("name", [name for name, _ in _manifest()])
def test_awkward_pictures_are_stored_in_the_right_orientation_and_colors(name: str) -> None:
    body = (FOLDER / name).read_bytes()
    seen = likeness(body)
    assert seen is None or seen >= 28
    if seen is not None:
        assert likeness(body, "png") >= 50  # type: ignore[operator]  # lossless, so nearly every pixel must match


PHOTOGRAPHS = FOLDER.parent / "pairs"


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"the photographs are not at {PHOTOGRAPHS}")
def test_stored_photographs_look_like_the_originals() -> None:
    paths = sorted(PHOTOGRAPHS.rglob("*.jpg"))
    seen = {path.name: likeness(path.read_bytes()) or 0.0 for path in paths[::4]}  # all 918 reach at least 36.9 dB
    assert len(seen) > 200
    assert min(seen.values()) >= 35, min(seen.items(), key=lambda item: item[1])


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"the photographs are not at {PHOTOGRAPHS}")
def test_scaled_decoding_of_real_photographs_looks_like_full_decoding() -> None:
    processor = ImageProcessor(ImagesConfig(size=100, format="png"))
    seen: list[float] = []
    for path in sorted(PHOTOGRAPHS.rglob("*.jpg"))[::10]:
        body = path.read_bytes()
        image = Image.open(io.BytesIO(body))
        if image.mode != "RGB" or max(image.size) < 600:  # smaller pictures are decoded at full size
            continue
        exact = io.BytesIO()
        image.save(exact, "PNG", compress_level=1)  # with its color profile
        fast, reference = (processor.process(data).image or b"" for data in (body, exact.getvalue()))
        seen.append(cv2.PSNR(*(np.asarray(Image.open(io.BytesIO(png))) for png in (fast, reference))))
    assert len(seen) > 10
    assert sorted(seen)[len(seen) // 20] >= 35  # for all but the worst twentieth
    assert min(seen) >= 30
