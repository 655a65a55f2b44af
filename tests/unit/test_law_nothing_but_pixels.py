"""Invariant: a picture that keeps its compressed pixels keeps nothing else from its file, and looks the same.

Oracle: a marker that no picture contains by itself, and the pixels that Pillow decodes from the original.
imgproxy#668 and w3c/png#158 report leftovers of this kind.
"""

import io
import struct
import zlib
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status
from tests.picture_grid import PNG_GRID, chunk, photo, png, saved

SECRET = b"GPS 12.34567 N 89.01234 E, by me; "

JPEGS = {
    kind: saved(
        photo(mode), "JPEG", quality=90, progressive=progressive, subsampling=sampling, restart_marker_rows=rows
    )
    for kind, mode, progressive, sampling, rows in (
        ("baseline", "RGB", False, 2, 0),
        ("restarts", "RGB", False, 0, 1),
        ("progressive", "RGB", True, 1, 0),
        ("gray", "L", False, 0, 0),
        ("gray progressive", "L", True, 0, 0),
    )
}


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data


def quantization(number: int) -> bytes:
    return segment(0xDB, bytes((number,)) + (SECRET * 2)[:64])


def huffman(number: int) -> bytes:
    return segment(0xC4, bytes((number, *[0] * 7, len(SECRET), *[0] * 8)) + SECRET)


ODD_PARTS = [
    *(quantization(number) for number in range(4)),
    *(huffman(16 * of_ac + number) for of_ac in (0, 1) for number in range(4)),
    *(segment(marker, SECRET) for marker in (0xE0, 0xE1, 0xE2, 0xEB, 0xED, 0xEE, 0xEF, 0xFE)),
    segment(0xE1, b"Exif\0\0MM\0*" + SECRET),
    segment(0xE0, b"JFXX\0\x10" + SECRET),
]


def shown(body: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(body)) as opened:
        return np.asarray(opened.convert("RGB"))


def stored(body: bytes, kind: str) -> bytes:
    picture = ImageProcessor(ImagesConfig(format=kind)).process(body)  # type: ignore[arg-type]
    assert picture.status is Status.OK, picture.detail
    assert picture.image is not None
    return picture.image


@given(st.sampled_from(sorted(JPEGS)), st.lists(st.sampled_from(ODD_PARTS), max_size=4), st.binary(max_size=9))
def test_a_jpeg_keeps_its_pixels_and_nothing_else(kind: str, parts: list[bytes], behind: bytes) -> None:
    """The picture's own tables follow the inserted tables and so replace them."""
    plain = JPEGS[kind]
    image = stored(plain[:2] + b"".join(parts) + plain[2:] + SECRET + behind, "jpg")
    assert SECRET[:9] not in image
    assert image == stored(plain, "jpg")
    assert np.array_equal(shown(image), shown(plain))


@given(st.sampled_from(sorted(JPEGS)), st.integers(0, 2**16))
def test_bytes_inside_the_scans_of_a_jpeg_are_not_kept(kind: str, place: int) -> None:
    plain = JPEGS[kind]
    start = plain.index(b"\xff\xda")
    markers = [at for at in range(start + 2, len(plain) - 1) if plain[at] == 0xFF and plain[at + 1]]
    at = markers[place % len(markers)]
    picture = ImageProcessor(ImagesConfig()).process(plain[:at] + SECRET + plain[at:])
    assert picture.image is None or SECRET[:9] not in picture.image


@pytest.mark.parametrize("number", [0x00, 0x01, 0x10, 0x11])
def test_a_table_after_the_only_scan_is_not_kept(number: int) -> None:
    """libjpeg has the standard tables built in, so it decodes a scan even if the scan's table comes too late."""
    plain = JPEGS["baseline"]
    at = next(
        found for found in range(len(plain)) if plain[found : found + 2] == b"\xff\xc4" and plain[found + 4] == number
    )
    after = at + 2 + int.from_bytes(plain[at + 2 : at + 4], "big")
    late = plain[:at] + plain[after:-2] + huffman(number) + plain[-2:]
    assert np.array_equal(shown(late), shown(plain))
    picture = ImageProcessor(ImagesConfig()).process(late)
    assert picture.image is None or SECRET[:9] not in picture.image


def test_tables_that_are_replaced_between_scans_are_kept_only_if_used() -> None:
    """Each scan has its own table, as written by encoders that optimize codes, and an unused table before it."""
    plain = JPEGS["progressive"]
    pieces = plain.split(b"\xff\xc4")
    body = pieces[0] + b"".join(huffman(0x13) + quantization(3) + b"\xff\xc4" + piece for piece in pieces[1:])
    assert len(pieces) > 3
    assert stored(body, "jpg") == stored(plain, "jpg")


PLACES = st.sampled_from(["chunk", "other chunk", "zlib", "IDAT", "IEND", "palette", "end"])


@given(st.sampled_from([cell for cell in PNG_GRID if cell[1] <= 8]), PLACES)
def test_a_png_keeps_its_pixels_and_nothing_else(cell: tuple[int, int], place: str) -> None:
    plain = png(*cell)
    at = plain.index(b"IDAT") - 4
    length = struct.unpack_from(">I", plain, at)[0]
    rows = zlib.decompress(plain[at + 8 : at + 8 + length])
    match place:
        case "chunk" | "other chunk":
            odd = plain[:at] + chunk(b"tEXt" if place == "chunk" else b"prVt", SECRET) + plain[at:]
        case "zlib":
            odd = plain[:at] + chunk(b"IDAT", zlib.compress(rows + SECRET)) + plain[at + 12 + length :]
        case "IDAT":
            odd = plain[:at] + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IDAT", SECRET) + plain[at + 12 + length :]
        case "IEND":
            odd = plain[:-12] + chunk(b"IEND", SECRET)
        case "palette":
            odd = plain if cell[0] == 3 else plain[:at] + chunk(b"PLTE", SECRET[:33]) + plain[at:]
        case _:
            odd = plain + SECRET
    image = stored(odd, "png")
    assert SECRET[:9] not in everything_in(image)
    assert np.array_equal(shown(image), shown(stored(plain, "png")))


def everything_in(body: bytes) -> bytes:
    """The bytes of a PNG and of its unpacked pixel data."""
    packed, at = b"", 8
    for _ in count():
        length, kind = struct.unpack_from(">I4s", body, at)
        packed += body[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
        if kind == b"IEND":
            break
    unpacker = zlib.decompressobj()
    return body + unpacker.decompress(packed) + unpacker.unused_data


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5), (9, 4), (33, 17)])
@pytest.mark.parametrize("interlace", [False, True])
def test_a_plain_png_is_not_encoded_again(mode: str, size: tuple[int, int], interlace: bool) -> None:
    import pyvips

    plain = saved(photo(mode).resize(size), "PNG")
    if interlace:
        plain = pyvips.Image.new_from_buffer(plain, "").pngsave_buffer(interlace=True)
    assert plain[28] == interlace
    image = stored(plain, "png")
    assert image[:33] == plain[:33]
    assert image.count(b"IDAT") == plain.count(b"IDAT")
    assert plain[plain.index(b"IDAT") : plain.rindex(b"IEND") - 4] in image
