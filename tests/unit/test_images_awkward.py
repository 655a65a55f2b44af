"""Real files: awkward ones from other projects' test suites each get a Status, and photographs keep their quality."""

import csv
import io
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.images import ImageProcessor
from schemas.jobs import ImagesConfig
from schemas.status import Status

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
    assert time.process_time() - started < 5
    if expect in ("error", "reject"):
        assert picture.status is not Status.OK
    if expect == "decode":
        assert picture.status is Status.OK, picture.detail
        size = picture.original_width, picture.original_height
        assert size == ImageOps.exif_transpose(Image.open(io.BytesIO(body))).size
    assert (picture.image is None) == (picture.status is not Status.OK)
    assert len(picture.detail or "") <= 200


PHOTOGRAPHS = FOLDER.parent / "pairs"


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"the photographs are not at {PHOTOGRAPHS}")
def test_scaled_decoding_of_real_photographs_looks_like_full_decoding() -> None:
    processor = ImageProcessor(ImagesConfig(size=100, format="png"))
    seen: list[float] = []
    for path in sorted(PHOTOGRAPHS.rglob("*.jpg"))[::5]:
        body = path.read_bytes()
        image = Image.open(io.BytesIO(body))
        if image.mode != "RGB" or max(image.size) < 600:  # smaller ones are decoded at full size
            continue
        exact = io.BytesIO()
        image.save(exact, "BMP")
        fast, reference = (processor.process(data).image or b"" for data in (body, exact.getvalue()))
        seen.append(cv2.PSNR(*(np.asarray(Image.open(io.BytesIO(png))) for png in (fast, reference))))
    assert len(seen) > 20
    assert sorted(seen)[len(seen) // 20] >= 35  # all but the worst in twenty
    assert min(seen) >= 30
