"""Tests which JPEGs keep their compressed pixels, and that these JPEGs keep nothing else."""

import io
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms, JpegImagePlugin

from pairmill.pipeline.image.passthrough import PassedPicture, pass_jpeg
from pairmill.pipeline.image.processor import ImageProcessor, ProcessedImage
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status
from tests.mutated_pictures import mutations

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_pictures = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the pictures are not at {SHARED}")

NEEDED = {0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, 0xDA, 0xE0}
"""The markers that decoding a JPEG requires, and the marker of JFIF."""
METADATA = (b"Exif\0", b"ICC_PROFILE", b"ns.adobe.com", b"Photoshop", b"Ducky", b"MPF\0", b"GPS", b"<x:xmpmeta")


def jpegs() -> Iterator[tuple[Path, bytes]]:
    for path in [*sorted(SHARED.glob("pairs/**/*.jpg"))[::5], *SHARED.glob("awkward/**/*")]:
        if path.is_file() and (body := path.read_bytes())[:3] == b"\xff\xd8\xff":
            yield path, body


def passed(body: bytes) -> PassedPicture | None:
    try:
        with Image.open(io.BytesIO(body), formats=["JPEG"]) as opened:
            return pass_jpeg(body, *opened.size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def pixels(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)))


def markers(body: bytes) -> list[int]:
    """The markers of the segments before the first scan, found by following the segment lengths."""
    found, offset = [], 2
    while body[offset + 1] != 0xDA:
        found.append(body[offset + 1])
        offset += 2 + int.from_bytes(body[offset + 2 : offset + 4], "big")
    return found


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


@needs_pictures
def test_real_pictures_that_pass_through_keep_their_exact_pixels_and_no_metadata() -> None:
    count = smaller = 0
    for path, body in jpegs():
        if (found := passed(body)) is None:
            continue
        count += 1
        smaller += len(found.image) < len(body)
        assert len(found.image) <= len(body) + 18, path  # 18 bytes for a JFIF segment
        assert np.array_equal(pixels(found.image), pixels(body)), path
        assert set(markers(found.image)) <= NEEDED, path
        assert found.image.endswith(b"\xff\xd9"), path
        header = found.image[: found.image.index(b"\xff\xda")]
        assert not any(name in header for name in METADATA), path
        opened = Image.open(io.BytesIO(found.image))
        assert not {"exif", "icc_profile", "xmp", "comment", "mp"} & set(opened.info), path
        assert not opened.getexif(), path
        assert cv2.imdecode(np.frombuffer(found.image, np.uint8), cv2.IMREAD_COLOR) is not None, path
    assert count > 120
    assert smaller > 24


@needs_pictures
def test_passing_through_changes_no_verdict_on_color_and_few_bits_of_the_hash() -> None:
    far = 0
    for path, body in jpegs():
        whole = ImageProcessor(ImagesConfig(resize_mode="no", reencode="always")).process(body)
        kept = ImageProcessor(ImagesConfig(resize_mode="no")).process(body)
        assert (kept.status, kept.width, kept.height) == (whole.status, whole.width, whole.height), path
        assert kept.one_color == whole.one_color, path
        if kept.phash and whole.phash:
            far += kept.phash != whole.phash
            assert distance(kept.phash, whole.phash) <= 2, path
    assert far < 9


def drawn(side: int = 320) -> Image.Image:
    small = np.random.default_rng(3).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (image or drawn()).save(file, "JPEG", **options)
    return file.getvalue()


def with_sampling(sampling: str) -> bytes:
    return simplejpeg.encode_jpeg(np.asarray(drawn()), 90, "RGB", sampling)


def patched(body: bytes, marker: bytes, offset: int, value: int) -> bytes:
    changed = bytearray(body)
    changed[body.index(marker) + offset] = value
    return bytes(changed)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return jpeg(exif=exif)


def with_profile(name: str) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(name))  # type: ignore[arg-type]
    return jpeg(icc_profile=profile.tobytes())


def wide_gamut() -> bytes:
    """A JPEG whose profile is sRGB with red and green swapped: no reader can mistake it for sRGB."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for index in range(int.from_bytes(profile[128:132], "big")):
        entry = 132 + 12 * index
        swap = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(bytes(profile[entry : entry + 4]))
        profile[entry : entry + 4] = swap or profile[entry : entry + 4]
    return jpeg(icc_profile=bytes(profile))


SOF = b"\xff\xc0"

PASS = {
    "baseline": jpeg(),
    "progressive": jpeg(progressive=True),
    "restart markers": jpeg(restart_marker_blocks=3),
    "gray": jpeg(drawn().convert("L")),
    "sRGB profile": with_profile("sRGB"),
    "EXIF, upright": jpeg(exif=Image.Exif()),
    "bytes after the picture": jpeg() + b"a video",
    "fill bytes": jpeg().replace(SOF, b"\xff\xff\xff" + SOF[1:], 1),
    **{sampling: with_sampling(sampling) for sampling in ("444", "422", "420", "440", "411")},
}
ADOBE_RGB = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\0"
ENCODED_AGAIN = {
    "CMYK": jpeg(drawn().convert("CMYK")),
    "RGB": jpeg(keep_rgb=True),
    "turned": rotated(),
    "another profile": wide_gamut(),
    "Adobe says RGB, JFIF says YCbCr": jpeg()[:20] + ADOBE_RGB + jpeg()[20:],
    "components say RGB, JFIF is too short": jpeg(keep_rgb=True).replace(ADOBE_RGB, b"\xff\xe0\0\x0bJFIF\0\1\1\0\0"),
    "bytes after the last block": jpeg()[:-2] + b"hidden" * 9 + b"\xff\xd9",
    "no end": jpeg()[:-2],
    "half": jpeg()[:-3000],
    "thousands of tables": jpeg()[:20] + b"\xff\xdd\0\4\0\0" * 80_000 + jpeg()[20:],
    "arithmetic coding": patched(jpeg(), SOF, 1, 0xC9),
}
REFUSED = {"12 bits": patched(jpeg(), SOF, 4, 12)}


@pytest.mark.parametrize("name", PASS)
def test_plain_jpegs_keep_their_compressed_pixels(name: str) -> None:
    found = ImageProcessor(ImagesConfig()).process(PASS[name])
    kept = passed(PASS[name])
    assert kept is not None
    assert found.image == kept.image
    assert np.array_equal(pixels(kept.image), pixels(PASS[name]))


@pytest.mark.parametrize("name", [*ENCODED_AGAIN, *REFUSED])
def test_other_jpegs_are_encoded_again_or_refused(name: str) -> None:
    body = (ENCODED_AGAIN | REFUSED)[name]
    found = ImageProcessor(ImagesConfig()).process(body)
    if name in REFUSED:
        assert found.status is not Status.OK
    else:
        assert found == ImageProcessor(ImagesConfig(reencode="always")).process(body)
    if name not in ("turned", "another profile"):  # these two are checked by the processor, not by `passed`
        assert passed(body) is None


@pytest.mark.parametrize("settings", [{"size": 100}, {"format": "png"}, {"reencode": "always"}])
def test_no_picture_passes_through_unchanged_in_a_job_that_changes_it(settings: dict[str, object]) -> None:
    found = ImageProcessor(ImagesConfig.model_validate(settings)).process(jpeg())
    kept = passed(jpeg())
    assert kept is not None
    assert found.status is Status.OK
    assert found.image != kept.image


@pytest.mark.parametrize("side", [16, 320])
def test_a_checkerboard_is_not_one_color_even_if_the_averages_of_its_blocks_are_equal(side: int) -> None:
    board = np.indices((side, side)).sum(axis=0) % 2 * 255
    for body in (jpeg(Image.fromarray(board.astype(np.uint8))), jpeg(Image.new("RGB", (side, side), "red"))):
        found = ImageProcessor(ImagesConfig()).process(body)
        assert found.one_color == ImageProcessor(ImagesConfig(reencode="always")).process(body).one_color
        assert found.one_color == (Image.open(io.BytesIO(body)).mode == "RGB")


def test_no_mutated_picture_passes_if_a_full_decode_refuses_it() -> None:
    rng, kept = random.Random(11), 0
    seeds = [jpeg(drawn(72)), jpeg(drawn(264), progressive=True), jpeg(drawn(264), restart_marker_blocks=2)]
    for body in islice(mutations(seeds, rng), 2_000):
        found = passed(body)
        if found is not None:
            kept += 1
            whole = simplejpeg.decode_jpeg(body, "RGB")  # raises ValueError if libjpeg warns
            assert np.array_equal(simplejpeg.decode_jpeg(found.image, "RGB"), whole)
    assert kept > 50


class WithPillow(ImageProcessor):
    """An ImageProcessor that opens every picture with Pillow first."""

    def _pass_plain(self, body: bytes) -> ProcessedImage | None:
        return None


def test_a_plain_picture_gets_the_same_result_without_pillow_as_with_it() -> None:
    rng, plain = random.Random(13), 0
    seeds = [jpeg(drawn(72)), jpeg(drawn(40), progressive=True), jpeg(drawn(72), restart_marker_blocks=2)]
    bodies = list(islice(mutations(seeds, rng), 1_500))
    if SHARED.is_dir():
        bodies += [body for _, body in islice(jpegs(), 0, None, 6)]
    quick, careful = ImageProcessor(ImagesConfig()), WithPillow(ImagesConfig())
    for body in bodies:
        assert quick.process(body) == careful.process(body)
        plain += quick._pass_plain(body) is not None
    assert plain > 100


def test_the_result_for_a_picture_that_passes_through_is_as_complete_as_for_an_encoded_one() -> None:
    found = ImageProcessor(ImagesConfig()).process(jpeg())
    always = ImageProcessor(ImagesConfig(reencode="always")).process(jpeg())
    names = [name for name in ProcessedImage.__slots__ if name not in ("image", "phash")]
    assert [getattr(found, name) for name in names] == [getattr(always, name) for name in names]


def test_the_error_for_skip_reencode_says_what_to_write_instead() -> None:
    with pytest.raises(ValueError, match=r"skip_reencode was removed.*reencode: always"):
        ImagesConfig.model_validate({"skip_reencode": False})


@pytest.mark.parametrize(
    ("chroma", "source", "stored"), [("source", "444", 0), ("source", "420", 2), ("420", "444", 2)]
)
def test_a_picture_that_is_encoded_again_has_the_chroma_resolution_that_the_job_sets(
    chroma: str, source: str, stored: int
) -> None:
    found = ImageProcessor(ImagesConfig.model_validate({"size": 100, "chroma": chroma})).process(with_sampling(source))
    with Image.open(io.BytesIO(found.image or b"")) as opened:
        assert JpegImagePlugin.get_sampling(opened) == stored
