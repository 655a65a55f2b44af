"""OpenCV decodes WebPs without frames and alpha as Pillow does, and refuses what Pillow refuses."""

import contextlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pairmill.pipeline.image.decode import ImageError, decode_pixels, open_image
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.image.salvage import without_metadata
from pairmill.pipeline.image.webp import StillWebp, read_still_webp
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status
from tests.picture_grid import photo, saved

PHOTO = photo()
EXIF = Image.Exif()
EXIF[274] = 6  # stored on its side
METADATA = {"exif": EXIF.tobytes(), "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}


def by_pillow(body: bytes) -> Any:
    """uint8 [height, width, 3] as stored; None if Pillow refuses the file, with and without its metadata."""
    for file in (body, *without_metadata(body, "WEBP")):
        with contextlib.suppress(Exception), Image.open(BytesIO(file), formats=["WEBP"]) as opened:
            return np.asarray(opened.convert("RGB"))
    return None


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"quality": 80, **METADATA}], ids=" ".join)
def test_a_still_picture_has_the_pixels_and_metadata_that_pillow_reads(options: Mapping[str, Any]) -> None:
    body = saved(PHOTO, "WEBP", **options)
    header, opened = open_image(body, 10**6)
    assert isinstance(opened, StillWebp)
    assert header.orientation == (6 if "exif" in options else 1)
    with Image.open(BytesIO(body)) as expected:
        assert (opened.mode, opened.size) == (expected.mode, expected.size)
        assert opened.info.get("icc_profile") == expected.info.get("icc_profile")
    assert np.array_equal(opened.decode(), by_pillow(body))


@pytest.mark.parametrize("flags", [0x00, 0x20, 0x08, 0x28])
def test_metadata_counts_only_if_the_header_announces_it(flags: int) -> None:
    body = bytearray(saved(PHOTO, "WEBP", quality=80, **METADATA))
    assert body[12:16] == b"VP8X"
    body[20] = flags
    header, opened = open_image(bytes(body), 10**6)
    assert isinstance(opened, StillWebp)
    with Image.open(BytesIO(body)) as expected:
        assert opened.info.get("icc_profile") == expected.info.get("icc_profile")
        assert header.orientation == expected.getexif().get(274, 1)


@pytest.mark.parametrize("num_bytes", [0, 1, 8, 9])
def test_a_header_that_is_too_short_is_left_to_pillow(num_bytes: int) -> None:
    header = b"VP8X" + num_bytes.to_bytes(4, "little") + bytes(num_bytes + num_bytes % 2)
    chunks = header + saved(PHOTO, "WEBP", quality=80)[12:]
    body = b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks
    assert read_still_webp(body) is None
    assert by_pillow(body) is None
    with pytest.raises(ImageError):
        open_image(body, 10**6)


@pytest.mark.parametrize("lossless", [True, False])
def test_frames_and_alpha_are_left_to_pillow(lossless: bool) -> None:
    translucent = PHOTO.convert("RGBA")
    translucent.putalpha(128)
    animation = {"save_all": True, "append_images": [PHOTO.rotate(90), PHOTO]}
    assert read_still_webp(saved(translucent, "WEBP", lossless=lossless)) is None
    assert read_still_webp(saved(PHOTO, "WEBP", lossless=lossless, **animation)) is None


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}], ids=" ".join)
def test_the_alpha_of_an_animation_counts_even_if_its_header_does_not_announce_it(options: Mapping[str, Any]) -> None:
    """libvips wrote such files (libvips#1351); browsers show them as they were meant."""
    translucent = photo("RGBA")
    announced = saved(translucent, "WEBP", save_all=True, append_images=[translucent.rotate(180)], **options)
    assert announced[12:16] == b"VP8X" and announced[20] & 0x10
    silent = announced[:20] + bytes((announced[20] & ~0x10,)) + announced[21:]
    processor = ImageProcessor(ImagesConfig())
    assert np.array_equal(processor.pixels(silent), processor.pixels(announced))


@given(at=st.floats(0, 1), flip=st.integers(0, 255), is_cut=st.booleans(), lossless=st.booleans())
def test_a_damaged_picture_is_refused_if_pillow_refuses_it(at: float, flip: int, is_cut: bool, lossless: bool) -> None:
    damaged = bytearray(saved(PHOTO, "WEBP", lossless=lossless, quality=80))
    offset = 12 + int(at * (len(damaged) - 13))
    damaged[offset] ^= flip
    body = bytes(damaged[:offset] if is_cut else damaged)
    expected = by_pillow(body)
    try:
        header, opened = open_image(body, 10**6)
        found = decode_pixels(body, header, opened, None)
    except ImageError:
        assert expected is None
    else:
        assert np.array_equal(found, expected)


@given(
    kind=st.sampled_from([b"VP8X", b"VP8 ", b"VP8L", b"ICCP", b"EXIF", b"ANIM", b"ANMF", b"ALPH", b"junk"]),
    data=st.binary(max_size=12),
)
def test_whatever_chunk_precedes_the_pixels_the_picture_gets_a_status(kind: bytes, data: bytes) -> None:
    chunks = kind + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2) + saved(PHOTO, "WEBP")[12:]
    body = b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks
    assert ImageProcessor(ImagesConfig()).process(body).status in Status
