"""Tests that pictures that need no change keep their compressed pixels and nothing else from the file."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.image.strip import strip_metadata
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status

SECRET = b"SECRET-PLACE-52.5163N"
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
AWKWARD = Path(__file__).parents[2].parent / "shared" / "data" / "awkward"


def picture(format: str, mode: str = "RGB", size: tuple[int, int] = (60, 40), **options: object) -> bytes:
    """A picture with a secret in every kind of metadata that Pillow can write."""
    small = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    file = io.BytesIO()
    image.save(file, format, exif=exif, comment=SECRET, xmp=SECRET, **options)
    return file.getvalue() + (SECRET if format == "JPEG" else b"")


def pixels(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


def processor(format: str, **settings: object) -> ImageProcessor:
    return ImageProcessor(ImagesConfig(format=format, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("jpg", "RGB", {"quality": 60}),
        ("jpg", "L", {"progressive": True}),
        ("jpg", "RGB", {"subsampling": 0, "restart_marker_rows": 1}),
        ("png", "RGB", {}),
        ("png", "P", {}),
        ("webp", "RGB", {"quality": 50}),
        ("webp", "RGB", {"lossless": True}),
    ],
)
def test_unchanged_pictures_keep_their_pixels_and_lose_their_metadata(
    format: str, mode: str, options: dict[str, object]
) -> None:
    body = picture(FORMATS[format], mode, **options)
    assert SECRET in body
    stored = processor(format).process(body).image
    assert stored is not None
    assert SECRET not in stored
    assert len(stored) < len(body)
    assert np.array_equal(pixels(stored), pixels(body))


def test_a_rotated_resized_or_converted_picture_is_encoded_again() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.open(io.BytesIO(picture("JPEG"))).save(turned, "JPEG", exif=exif)
    upright = processor("jpg").process(turned.getvalue())
    assert (upright.width, upright.height) == (40, 60)
    assert Image.open(io.BytesIO(upright.image or b"")).size == (40, 60)
    assert processor("jpg", size=30).process(picture("JPEG")).width == 30
    assert Image.open(io.BytesIO(processor("jpg").process(picture("PNG")).image or b"")).format == "JPEG"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16"])
def test_pictures_with_alpha_or_16_bits_are_encoded_again(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "PNG")
    stored = Image.open(io.BytesIO(processor("png").process(file.getvalue()).image or b""))
    assert stored.mode == "RGB"


def test_stripping_a_mutated_file_keeps_its_pixels_or_is_refused() -> None:
    """A stripped file that decodes differently would be a picture that no rule has checked."""
    rng = random.Random(5)
    kept = 0
    for format, name in FORMATS.items():
        body = picture(name)
        for _ in range(300):
            mutated = bytearray(body)
            for _ in range(rng.randint(1, 3)):
                mutated[rng.randrange(len(mutated))] = rng.randrange(256)
            found = processor(format).process(bytes(mutated))
            if found.status is not Status.OK or found.image is None:
                continue
            stripped = strip_metadata(bytes(mutated), name)
            if stripped == found.image:
                kept += 1
                assert np.array_equal(pixels(stripped), processor(format).pixels(bytes(mutated)))
    assert kept > 100


@pytest.mark.skipif(not AWKWARD.is_dir(), reason=f"the awkward pictures are not at {AWKWARD}")
def test_stripping_awkward_files_never_crashes_or_changes_a_pixel() -> None:
    for path in sorted(AWKWARD.rglob("*.*")):
        body = path.read_bytes()
        for format, name in FORMATS.items():
            stripped = strip_metadata(body, name)
            if stripped is not None and processor(format, resize_mode="no").process(body).image == stripped:
                assert np.array_equal(pixels(stripped), pixels(body)), path
