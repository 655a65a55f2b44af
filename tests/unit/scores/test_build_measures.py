"""Tests the measures that `ImageProcessor.process` computes: it decodes each picture only once, and it measures the
picture that it stores."""

import io
from pathlib import Path
from typing import Any

import pytest
import simplejpeg
from PIL import Image

from pairmill.pipeline.image.jpeg_quality import jpeg_quality
from pairmill.pipeline.image.measures import measure
from pairmill.pipeline.image.processor import ImageProcessor, ProcessedImage
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.pictures import MEASURES, Measure

PAIRS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "pairs"
PHOTOGRAPHS = [path.read_bytes() for path in sorted(PAIRS.rglob("*.jpg"))[::100]]


def png(body: bytes) -> bytes:
    Image.open(io.BytesIO(body)).convert("RGB").save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def processed(body: bytes, measures: tuple[Measure, ...] = MEASURES, **settings: Any) -> ProcessedImage:
    return ImageProcessor(ImagesConfig(**settings), measures).process(body)


@pytest.mark.parametrize("size", [100, 512, 2_000])
def test_a_picture_is_decoded_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = simplejpeg.decode_jpeg, list[object]()
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **more: (calls.append(args), whole(*args, **more))[1])
    for number, body in enumerate(PHOTOGRAPHS, start=1):
        assert processed(body, size=size).measured is not None
        assert len(calls) == number


@pytest.mark.parametrize(
    ("settings", "prepare"),
    [({"resize_mode": "no"}, bytes), ({"format": "png"}, bytes), ({"format": "png", "size": 200}, png)],
    ids=["JPEG that passes", "JPEG to PNG", "PNG, resized"],
)
def test_the_measures_are_those_of_the_stored_picture_if_pixels_are_kept_exactly(
    settings: dict[str, object], prepare: Any
) -> None:
    for body in map(prepare, PHOTOGRAPHS):
        found = processed(body, **settings)
        assert found.image is not None and found.measured is not None
        stored = measure(ImageProcessor(ImagesConfig()).pixels(found.image), found.image, MEASURES)
        assert found.measured == {**stored, "jpeg_quality": jpeg_quality(body)}  # the JPEG quality is the original's


def test_measuring_changes_nothing_except_at_most_two_bits_of_the_hash() -> None:
    for body in [*PHOTOGRAPHS, png(PHOTOGRAPHS[0]), b"no picture"]:
        for settings in ({"resize_mode": "no"}, {"size": 150}):
            plain, measured = processed(body, (), **settings), processed(body, **settings)
            assert plain.measured is None
            bits = int(plain.phash or "0", 16) ^ int(measured.phash or "0", 16)
            assert bits.bit_count() <= 2
            names = [name for name in ProcessedImage.__slots__ if name not in ("measured", "phash")]
            assert [getattr(plain, name) for name in names] == [getattr(measured, name) for name in names]


def test_the_jpeg_quality_alone_can_be_measured() -> None:
    for body in PHOTOGRAPHS:
        assert processed(body, ("jpeg_quality",)).measured == {"jpeg_quality": jpeg_quality(body)}
