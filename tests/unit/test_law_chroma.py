"""Invariant: with `images.chroma: source`, encoding a picture again loses no chroma resolution in either direction.

Oracle: the sampling factors that Pillow reads from the original and from the stored file (T.81, B.2.2).
"""

import base64
import io
import itertools

import numpy as np
import pytest
import simplejpeg
from PIL import Image, JpegImagePlugin

from pairmill.pipeline.image.decode import chroma_of
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status
from tests.picture_grid import exif, photo

EQUAL_FACTORS = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMU"
    "FRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
    "FBQUFBQUFBT/wAARCAAQABADARIAAhIBAxIB/8QAFgABAQEAAAAAAAAAAAAAAAAABAUI/8QAIhAAAQMDBAMBAAAAAAAAAAAAAgED"
    "EQAFEgQTMWEhIkHR/8QAFgEBAQEAAAAAAAAAAAAAAAAABwYE/8QAJhEAAgECBQQCAwAAAAAAAAAAAQIRAwQABQYSIRQiMUETMlJh"
    "cf/aAAwDAQACEQMRAD8AznZ9C3cNSTbikIoCl6r55T9obTzjBZNmTZKkSKwtP+udRXemctp3lmqszOF7gSIKsfRXntHvFtd2NpmF"
    "MUryktRQZhlDCfEwQeeTz+8btCactNT5lUs7xmVVplu0gGQyj2G47j6xD2d/d5fUNWzqtTYiJVipjzEgjjgcfrFC9Wxq3bO0Rlnl"
    "Oap8jrugO6h1+N103I4zJVijPQWrb7VPVdaiL8eyNoI+26Zlm/ER4wkWeWWOXbuioJT3RO1Qsx4mAJiTH9wn6/0hYaU6Xondvl3z"
    "vKn67IiFX8jPn1g1vczv8y29bXertmN7M0TExJMTAn+DH//Z"
)
"""A 4:4:4 JPEG with the unusual factors 1x2 for each component: `cjpeg -sample 1x2,1x2,1x2`."""


def coarseness(body: bytes) -> tuple[float, float]:
    """How many times coarser chroma is than luma, as (horizontally, vertically)."""
    with Image.open(io.BytesIO(body)) as opened:
        assert isinstance(opened, JpegImagePlugin.JpegImageFile)
        (_, across, down, _), *chroma = opened.layer
    return min(across / layer[1] for layer in chroma), min(down / layer[2] for layer in chroma)


def stored(body: bytes) -> bytes:
    picture = ImageProcessor(ImagesConfig(reencode="always")).process(body)
    assert picture.status is Status.OK
    assert picture.image is not None
    return picture.image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("chroma", ["444", "422", "440", "420", "411"])
def test_the_chroma_resolution_is_kept_when_a_picture_is_rotated(chroma: str, orientation: int) -> None:
    body = simplejpeg.encode_jpeg(np.ascontiguousarray(photo()), 95, "RGB", chroma)
    segment = b"\xff\xe1" + (8 + len(exif(orientation))).to_bytes(2, "big") + b"Exif\0\0" + exif(orientation)
    before = coarseness(body)[:: -1 if orientation >= 5 else 1]
    after = coarseness(stored(body[:2] + segment + body[2:]))
    assert after[0] <= before[0]
    assert after[1] <= before[1]
    if before != (1, 4):  # 4:1:1 on its side, a subsampling that encoders do not write
        assert after == before


def test_equal_sampling_factors_mean_no_subsampling() -> None:
    image = stored(EQUAL_FACTORS)
    assert coarseness(EQUAL_FACTORS) == coarseness(image) == (1, 1)
    shown, kept = (np.asarray(Image.open(io.BytesIO(body))).astype(int) for body in (EQUAL_FACTORS, image))
    assert np.abs(shown - kept).max() < 12  # with 4:2:0, it would be 105


def test_unusual_sampling_factors_lose_no_chroma_resolution() -> None:
    coarse = {"444": (1, 1), "422": (2, 1), "440": (1, 2), "420": (2, 2), "411": (4, 1)}
    for y, cb, cr in itertools.product(itertools.product((1, 2, 3, 4), repeat=2), repeat=3):
        before = [min(y[side] / cb[side], y[side] / cr[side]) for side in (0, 1)]
        for was, now in zip(before, coarse[chroma_of(*before)], strict=True):
            assert now <= max(was, 1)
