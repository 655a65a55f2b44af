"""Invariant: a valid picture is never `image_corrupt`, even if none of our decoders can read its variant."""

import struct

import pytest

from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.status import Status
from tests.picture_grid import HEIGHT, WIDTH, chunk, old_jpeg_tiff, photo, saved, tiff, values


def status(body: bytes) -> tuple[Status, str | None]:
    picture = ImageProcessor(ImagesConfig()).process(body)
    return picture.status, picture.detail


def jpeg(marker: int = 0xC0, bits: int = 8, height: int | None = None) -> bytes:
    """A JPEG with a changed frame header. No decoder reads the rest of it."""
    body = bytearray(saved(photo(), "JPEG"))
    at = body.index(b"\xff\xc0")
    body[at + 1], body[at + 4] = marker, bits
    if height is not None:
        struct.pack_into(">H", body, at + 5, height)
    return bytes(body)


def bmp(bits: int, compression: int, masks: tuple[int, ...] = ()) -> bytes:
    pixels = bytes(HEIGHT * -(-WIDTH * bits // 32) * 4)
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    header += struct.pack(f"<{len(masks)}I", *masks)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


UNSUPPORTED = {
    "JPEG with 12 bits": jpeg(0xC1, 12),
    **{f"JPEG, frame {marker:x}": jpeg(marker) for marker in (0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF)},
    "JPEG, lossless with 16 bits": jpeg(0xC3, 16),
    "JPEG-LS": jpeg(0xF7),
    "JPEG, height in DNL": jpeg(height=0),
    "PNG for iOS": saved(photo(), "PNG").replace(b"\0\0\0\rIHDR", chunk(b"CgBI", b"\x50\0\x20\x02") + b"\0\0\0\rIHDR"),
    "BMP with 2 bits": bmp(2, 0),
    "BMP of a JPEG": bmp(0, 4),
    "BMP of a PNG": bmp(0, 5),
    "BMP, 4 bits per color": bmp(16, 3, (0xF00, 0xF0, 0xF)),
    "BMP, 10 bits per color": bmp(32, 3, (0x3FF00000, 0xFFC00, 0x3FF)),
    "BMP, red first": bmp(32, 3, (0xFF, 0xFF00, 0xFF0000)),
    **{
        f"TIFF, compression {number}": tiff(values(8, 3), bits=8, photometric=2, tags={259: [number]})
        for number in (32809, 34712, 34887, 50001, 50002)  # ThunderScan, JPEG 2000, LERC, WebP, JPEG XL
    },
    **{
        f"TIFF, channel and alpha in planes, {photometric}, {kind}, {deflate}": tiff(
            values(8, 2),
            bits=8,
            photometric=photometric,
            is_planar=True,
            deflate=deflate,
            tags={338: [kind], 320: [257 * index for index in range(256)] * 3},
        )
        for photometric, kind in ((1, 1), (1, 2), (3, 2))
        for deflate in (False, True)
    },
    "TIFF, old-style JPEG in gray": old_jpeg_tiff("L", 0, [1, 1])[0],
    "TIFF, RGB with 32 bits": tiff(values(32, 3), bits=32, photometric=2),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_valid_but_unsupported_picture_gets_the_status_unsupported(name: str) -> None:
    found, detail = status(UNSUPPORTED[name])
    assert found is Status.IMAGE_UNSUPPORTED
    assert detail


@pytest.mark.parametrize(
    "body", [saved(photo(), "JPEG"), saved(photo(), "BMP"), bmp(24, 0), bmp(32, 3, (0xFF0000, 0xFF00, 0xFF))]
)
def test_a_truncated_picture_of_a_supported_kind_is_corrupt(body: bytes) -> None:
    for size in (20, 30, 60, len(body) // 2):
        assert status(body[:size])[0] is Status.IMAGE_CORRUPT
