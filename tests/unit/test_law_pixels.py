"""Invariant: metadata never loses or changes a picture, and stored pixels agree with two of three other decoders."""

import io
import re
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.image.strip import webp_chunks
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status
from tests import other_decoders, picture_grid
from tests.picture_grid import Case, chunk, exif, png, saved, tiff, values, xmp

Pixels = npt.NDArray[np.uint8]

DECODERS = ("pillow", "opencv", "libvips")

DISAGREEMENTS = {
    # pattern of case names -> (who is right, why)
    r"tiff .* 12 bits photometric 1": (
        ("pillow", "opencv"),
        "libvips does not read samples of 12 bits.",
    ),
    r"tiff .* photometric 0": (
        ("specification",),
        "TIFF 6.0, section 3: WhiteIsZero. Pillow and OpenCV ignore it above 8 bits, and libvips for signed "
        "samples and floats. OpenCV does not read unsigned samples of 32 bits.",
    ),
    r"tiff .* 32 bits photometric 1": (
        ("specification", "libvips"),
        "Pillow reads unsigned samples of 32 bits in only one byte order, OpenCV in neither.",
    ),
    r"tiff without photometric": (
        ("specification",),
        "The tag is required. Without it, libtiff assumes BlackIsZero, except for fax compressions, and Pillow assumes "
        "WhiteIsZero. OpenCV and libvips refuse the picture.",
    ),
    r"tiff cmyk .. 16 bits": (
        ("pillow",),
        "Without a profile, ink has no defined color: Pillow and OpenCV multiply, and libvips assumes a press of its "
        "own. OpenCV does not read 16 bits.",
    ),
    r"tiff gray and channel of kind 1": (
        ("specification", "libvips"),
        "Pillow cannot convert gray with premultiplied alpha, and OpenCV drops the alpha.",
    ),
    r"tiff of an old-style jpeg": (
        ("specification", "pillow"),
        "OpenCV and libvips are built without it.",
    ),
    r"gif with a small frame on . opaque": (
        ("specification",),
        "Browsers show the page around the frame. Pillow and OpenCV show a color of the palette, and libvips black.",
    ),
    r"webp with a small frame of RGB$": (
        ("specification", "libvips"),
        "Browsers show the page around the frame. Pillow and OpenCV drop the alpha, which leaves black.",
    ),
    r"avif L icc_profile GRAY": (("pillow",), "OpenCV applies no profiles, and libvips no profiles of gray AVIFs."),
}
"""Cases in which fewer than two decoders agree with the stored pixels."""


def stored(body: bytes) -> Pixels:
    picture = ImageProcessor(ImagesConfig(resize_mode="no", format="png")).process(body)
    assert picture.status is Status.OK, (picture.status, picture.detail)
    assert picture.image is not None
    return np.asarray(Image.open(io.BytesIO(picture.image)).convert("RGB"))


@cache
def as_it_was(body: bytes) -> Pixels:
    """The stored pixels of a file that the test has not changed. Cached, because many examples use the same files."""
    return stored(body)


FEWER = settings(max_examples=settings.default.max_examples // 3)


def agrees(one: Pixels | None, other: Pixels, tolerance: int) -> bool:
    if one is None or one.shape != other.shape:
        return False
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= tolerance


def agreeing(case: Case, pixels: Pixels) -> set[str]:
    shown = {name: getattr(other_decoders, name)(case.body) for name in DECODERS}
    if case.right is not None:
        shown["specification"] = case.right if case.right.ndim == 3 else np.repeat(case.right[..., None], 3, axis=2)
    return {name for name, other in shown.items() if agrees(other, pixels, case.tolerance)}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, set[str]]:
    return {case.name: agreeing(case, stored(case.body)) for case in picture_grid.cases()}


def test_stored_pixels_agree_with_two_of_three_decoders(verdicts: dict[str, set[str]]) -> None:
    assert len(verdicts) > 280
    wrong = {}
    for name, right in verdicts.items():
        if len(right & set(DECODERS)) < 2:
            told = next((told for pattern, (told, _) in DISAGREEMENTS.items() if re.match(pattern, name)), ())
            if not set(told) & right:
                wrong[name] = right
    assert not wrong


def test_every_listed_disagreement_occurs(verdicts: dict[str, set[str]]) -> None:
    odd = [name for name, right in verdicts.items() if len(right & set(DECODERS)) < 2]
    for pattern in DISAGREEMENTS:
        assert any(re.match(pattern, name) for name in odd), pattern


def test_channels_stored_as_planes_show_the_same_picture() -> None:
    twins = list(picture_grid.planar_tiffs())
    assert len(twins) > 100
    assert not [name for name, planar, twin in twins if not np.array_equal(stored(planar), stored(twin))]


CASES = Path(__file__).parents[2].parent / "shared" / "data" / "cases"


def test_a_profile_for_another_color_space_is_ignored() -> None:
    body = (CASES / "gray_icc_rgb.png").read_bytes()
    assert np.array_equal(stored(body), np.asarray(Image.open(io.BytesIO(body)).convert("RGB")))


def test_metadata_that_unpacks_to_megabytes_loses_no_picture() -> None:
    assert np.array_equal(
        stored((CASES / "big_text.png").read_bytes()), stored((CASES / "gray_icc_rgb.png").read_bytes())
    )


def test_a_transparent_color_of_four_bits_becomes_white() -> None:
    body = (CASES / "trns_grey4.png").read_bytes()
    assert agrees(other_decoders.libvips(body), stored(body), 0)


def test_white_is_zero_is_respected_at_every_depth() -> None:
    of_8, of_16 = (stored((CASES / f"miniswhite_{bits}.tif").read_bytes()) for bits in (8, 16))
    assert agrees(of_8, of_16, 1)
    assert agrees(other_decoders.libvips((CASES / "miniswhite_16.tif").read_bytes()), of_16, 1)


def test_dark_pictures_of_sixteen_bits_stay_dark() -> None:
    assert stored((CASES / "dark_16.png").read_bytes()).max() <= 1


def test_bits_of_a_transparent_color_above_the_depth_are_ignored() -> None:
    for color_type, bits in ((0, 1), (0, 2), (0, 4), (0, 8), (2, 8)):
        plain, stray = (
            stored(png(color_type, bits, chunk(b"tRNS", picture_grid.transparency(color_type, bits, extra))))
            for extra in (0, 1)
        )
        assert np.array_equal(plain, stray), (color_type, bits)


def test_the_lowest_bit_of_a_transparent_color_of_sixteen_bits_matters() -> None:
    for color_type in (0, 2):
        pixels = values(16, picture_grid.PNG_CHANNELS[color_type])
        key = pixels[3, 4].copy()
        key[-1] ^= 1  # a color that no pixel has
        assert not (pixels == key).all(axis=-1).any()
        body = png(color_type, 16, chunk(b"tRNS", key.astype(">u2").tobytes()))
        assert np.array_equal(stored(body), stored(png(color_type, 16)))


@pytest.mark.parametrize("data", [b"", b"\0", bytes(7), bytes(300)])
@pytest.mark.parametrize(("color_type", "bits"), picture_grid.PNG_GRID)
def test_a_transparency_chunk_of_the_wrong_length_is_ignored(color_type: int, bits: int, data: bytes) -> None:
    if color_type == 3 and 0 < len(data) <= 1 << bits:
        return  # this chunk is valid
    assert np.array_equal(stored(png(color_type, bits, chunk(b"tRNS", data))), stored(png(color_type, bits)))


@pytest.mark.parametrize("kind", ["eXIf", "iTXt", "zTXt", "zipped iTXt"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_png_is_rotated_wherever_its_orientation_is_stored(kind: str, behind: bool) -> None:
    hexadecimal = b"\nexif\n      26\n" + (b"Exif\0\0" + exif(6)).hex().encode()
    data = {
        "eXIf": chunk(b"eXIf", exif(6)),
        "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)),
        "zipped iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(6))),
        "zTXt": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexadecimal)),
    }[kind]
    body = png(2, 8, after=data) if behind else png(2, 8, data)
    assert np.array_equal(stored(body), np.rot90(stored(png(2, 8)), -1))


ANCILLARY = (
    b"tEXt zTXt iTXt iCCP gAMA cHRM sRGB pHYs sBIT bKGD hIST sPLT tIME eXIf acTL fcTL fdAT cICP mDCV cLLI prVt"
).split()

KEYWORDS = (
    b"",
    b"Raw profile type exif\0",
    b"XML:com.adobe.xmp\0",
    b"XML:com.adobe.xmp\0\1\0\0\0",
    b"\xff\xfe\0",
    b"p\0\0",
)

PAYLOADS = st.one_of(
    st.binary(max_size=60), st.binary(max_size=40).map(zlib.compress), st.just(zlib.compress(bytes(5 << 20)))
)


@given(
    kind=st.sampled_from([*ANCILLARY, b"tRNS"]),
    data=st.builds(bytes.__add__, st.sampled_from(KEYWORDS), PAYLOADS),
    broken=st.booleans(),
    place=st.sampled_from(["first", "before", "after"]),
    form=st.sampled_from(picture_grid.PNG_GRID),
)
def test_no_ancillary_chunk_loses_or_changes_a_png(
    kind: bytes, data: bytes, broken: bool, place: str, form: tuple[int, int]
) -> None:
    broken = broken or (kind == b"tRNS" and place != "after")  # an intact tRNS before the pixels changes the picture
    odd = chunk(kind, data, 1 if broken else None)
    assert np.array_equal(stored(png(*form, **{place: odd})), as_it_was(png(*form)))


SEGMENTS = (
    b"Exif\0\0", b"Exif\0\0MM\0*",
    b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0\1\1", b"MPF\0MM\0*\0\0\0\x08\0\x03",
    b"MPF\0II*\0\x08\0\0\0", b"Photoshop 3.0\0" + b"8BIM\x03\xed", b"Photoshop 3.0\0", b"FPXR\0", b"JFIF\0", b"",
)  # fmt: skip


@FEWER
@given(
    marker=st.sampled_from([*range(0xE0, 0xEE), 0xEF, 0xFE]),
    data=st.builds(bytes.__add__, st.sampled_from(SEGMENTS), st.binary(max_size=60)),
    mode=st.sampled_from(["RGB", "L"]),
)
def test_no_segment_loses_or_changes_a_jpeg(marker: int, data: bytes, mode: str) -> None:
    body = saved(picture_grid.photo(mode), "JPEG", quality=95)
    odd = bytes((0xFF, marker)) + struct.pack(">H", 2 + len(data)) + data
    for place in (2, 20):  # before and after the JFIF segment
        assert np.array_equal(stored(body[:place] + odd + body[place:]), as_it_was(body))


@FEWER
@given(
    tag=st.sampled_from(
        [
            270,
            280,
            282,
            283,
            292,
            293,
            296,
            305,
            306,
            315,
            330,
            512,
            513,
            519,
            333,
            700,
            33723,
            34377,
            34665,
            34675,
            34853,
            65000,
        ]
    ),
    kind=st.integers(0, 20),
    count=st.sampled_from([0, 1, 2, 3, 100, 1 << 16, 0xFFFFFFFF]),
    value=st.one_of(st.integers(0, 300), st.integers(0, 0xFFFFFFFF)),
    order=st.sampled_from("<>"),
)
def test_no_metadata_tag_loses_or_changes_a_tiff(tag: int, kind: int, count: int, value: int, order: str) -> None:
    for bits, deflate in ((8, False), (16, True)):
        body = tiff(values(bits, 1), bits=bits, photometric=0, order=order, deflate=deflate, tags={tag: [1]})
        entry = struct.pack(order + "HHI", tag, 3, 1)
        assert body.count(entry) == 1
        at = body.index(entry)
        odd_entry = struct.pack(order + "HHII", tag, kind, count, value)
        assert np.array_equal(stored(body[:at] + odd_entry + body[at + 12 :]), as_it_was(body))


@FEWER
@given(
    kind=st.sampled_from([b"EXIF", b"XMP ", b"ICCP", b"junk"]),
    data=st.builds(bytes.__add__, st.sampled_from([b"", b"Exif\0\0MM\0*"]), st.binary(max_size=41)),
    lossless=st.booleans(),
    claimed=st.sampled_from([0, 1, 1000, 0xFFFFFFF0]),
)
def test_no_chunk_loses_or_changes_a_webp(kind: bytes, data: bytes, lossless: bool, claimed: int) -> None:
    body = saved(picture_grid.photo(), "WEBP", lossless=lossless)
    flags = {b"EXIF": 8, b"XMP ": 4, b"ICCP": 32}.get(kind, 0)
    canvas = (picture_grid.WIDTH * 4 - 1).to_bytes(3, "little") + (picture_grid.HEIGHT * 4 - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<II", 10, flags) + canvas
    odd = kind + struct.pack("<I", claimed or len(data)) + data + bytes(len(data) % 2)
    chunks = extended + body[12:] + odd
    assert np.array_equal(stored(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks), as_it_was(body))


@FEWER
@given(data=st.binary(min_size=60, max_size=60), kind=st.sampled_from(["exif", "xmp", "icc_profile"]))
def test_no_item_loses_or_changes_an_avif(data: bytes, kind: str) -> None:
    metadata = Image.Exif()
    metadata[0x010E] = "m" * 60  # the tag ImageDescription
    body = saved(picture_grid.photo(), "AVIF", **{kind: metadata if kind == "exif" else b"m" * 60})
    assert body.count(b"m" * 60) == 1
    assert np.array_equal(stored(body.replace(b"m" * 60, data)), as_it_was(saved(picture_grid.photo(), "AVIF")))


@pytest.mark.parametrize("turned", [False, True])
def test_only_the_container_of_an_avif_says_how_to_turn_it(turned: bool) -> None:
    """After turning the pixels, sharp leaves the old orientation in XMP (sharp#4585)."""
    right = {"exif": b"Exif\0\0" + exif(6)} if turned else {}  # Pillow writes it to the container
    body = saved(picture_grid.photo(), "AVIF", **right)
    assert np.array_equal(stored(saved(picture_grid.photo(), "AVIF", **right, xmp=xmp(8))), as_it_was(body))


@FEWER
@given(label=st.sampled_from([0xFE, 0xFF, 0x01, 0x77]), blocks=st.lists(st.binary(min_size=1, max_size=30), max_size=3))
def test_no_extension_loses_or_changes_a_gif(label: int, blocks: list[bytes]) -> None:
    body = saved(picture_grid.photo("P"), "GIF")
    at = body.index(b"\x2c", 13 + 3 * (2 << (body[10] & 7)))
    odd = bytes((0x21, label)) + b"".join(bytes((len(block),)) + block for block in blocks) + b"\0"
    assert np.array_equal(stored(body[:at] + odd + body[at:]), as_it_was(body))


ORIENTATION_AND_PROFILE = {"exif": b"Exif\0\0" + exif(6), "icc_profile": picture_grid.profile("RGB ")}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    ("marker", "data"), [(0xE0, b"JFIF\0"), (0xEE, b"Adobe"), (0xEE, b"Adobe\0\x64\0\0\0\0"), (0xE2, b"ICC_PROFILE\0")]
)
def test_a_segment_that_pillow_refuses_costs_a_jpeg_neither_orientation_nor_profile(
    marker: int, data: bytes, mode: str
) -> None:
    body = saved(picture_grid.photo(mode), "JPEG", quality=95, **ORIENTATION_AND_PROFILE)
    broken = bytes((0xFF, marker)) + struct.pack(">H", 2 + len(data)) + data
    assert np.array_equal(stored(body[:2] + broken + body[2:]), as_it_was(body))


@pytest.mark.parametrize("options", [{}, {"save_all": True, "append_images": [picture_grid.photo("RGBA").rotate(180)]}])
@pytest.mark.parametrize("fault", ["size", "an unknown chunk", "the profile behind the pixels"])
def test_a_container_that_libwebp_refuses_costs_a_webp_neither_orientation_nor_profile(
    fault: str, options: dict[str, object]
) -> None:
    body = saved(picture_grid.photo("RGBA"), "WEBP", quality=95, **ORIENTATION_AND_PROFILE, **options)
    header, *chunks = (each for _, each in webp_chunks(body))
    profile, pixels, metadata = chunks[0], chunks[1:-1], chunks[-1]
    assert (profile[:4], metadata[:4]) == (b"ICCP", b"EXIF")
    if fault == "an unknown chunk":
        pixels.insert(1, b"junk\2\0\0\0ab")
    elif fault == "the profile behind the pixels":
        pixels, profile = [*pixels, profile], b""
    data = b"".join([header, profile, *pixels, metadata])
    wrong = 100 if fault == "size" else 0
    odd = b"RIFF" + struct.pack("<I", 4 + len(data) + wrong) + b"WEBP" + data
    assert np.array_equal(stored(odd), as_it_was(body))


PALETTE = bytes(range(48))
SECOND_HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 3, 0, 0, 0))


@pytest.mark.parametrize("format", ["jpg", "png"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b"", chunk(b"PLTE", PALETTE)),
        (chunk(b"PLTE", b""), b""),
        (chunk(b"PLTE", PALETTE[:10]), b""),
        (chunk(b"PLTE", PALETTE) + chunk(b"PLTE", PALETTE[::-1]), b""),
        (chunk(b"PLTE", PALETTE), chunk(b"PLTE", PALETTE[::-1])),
        (chunk(b"PLTE", PALETTE) + SECOND_HEADER, b""),
        (chunk(b"PLTE", PALETTE) + chunk(b"ABCD", b"x"), b""),
    ],
)
def test_a_png_whose_critical_chunks_libpng_refuses_is_corrupt(before: bytes, after: bytes, format: str) -> None:
    """Otherwise, readers of the stored picture would see other pixels than those that were scored, or none."""
    pixels = zlib.compress(b"".join(b"\0" + bytes(range(8)) for _ in range(4)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 4, 8, 3, 0, 0, 0))
    body = b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")
    assert other_decoders.opencv(body) is None
    picture = ImageProcessor(ImagesConfig.model_validate({"resize_mode": "no", "format": format})).process(body)
    assert picture.status is Status.IMAGE_CORRUPT
    assert picture.detail


@pytest.mark.parametrize("header_bytes", [56, 108, 124])
@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_a_bmp_without_a_single_visible_pixel_is_opaque(header_bytes: int, alpha: int) -> None:
    """Programs leave the alpha channel empty (image-rs#539); browsers and Windows then ignore it."""
    colors = values(8, 3).astype(np.uint8)
    height, width, _ = colors.shape
    rows = np.dstack([colors[::-1, :, ::-1], np.full((height, width, 1), alpha, np.uint8)]).tobytes()
    body = bmp_of_bit_fields(rows, (width, height), 32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), header_bytes)
    opacity = (alpha or 255) / 255
    assert np.abs(stored(body) - (colors * opacity + 255 * (1 - opacity))).max() <= 1


def bmp_of_bit_fields(
    rows: bytes, size: tuple[int, int], bits: int, masks: tuple[int, int, int, int], header_bytes: int
) -> bytes:
    header = struct.pack("<IiiHHIIiiII4I", header_bytes, *size, 1, bits, 3, 0, 0, 0, 0, 0, *masks)
    header += bytes(header_bytes - len(header))
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows


@pytest.mark.parametrize("header_bytes", [56, 108, 124])
@pytest.mark.parametrize("is_any_visible", [True, False])
def test_the_single_bit_of_alpha_of_a_bmp_counts(header_bytes: int, is_any_visible: bool) -> None:
    """Pillow ignores the mask for alpha of pixels with 16 bits."""
    colors = values(5, 3)
    height, width, _ = colors.shape
    alpha = values(1, 1)[..., 0] * is_any_visible
    packed = alpha << 15 | colors[..., 0] << 10 | colors[..., 1] << 5 | colors[..., 2]
    rows = packed[::-1].astype("<u2").tobytes()
    body = bmp_of_bit_fields(rows, (width, height), 16, (0x7C00, 0x3E0, 0x1F, 0x8000), header_bytes)
    opaque = np.rint(colors * (255 / 31))
    right = np.where(alpha[..., None] == 0, 255, opaque) if is_any_visible else opaque
    assert np.abs(stored(body) - right).max() <= 1
