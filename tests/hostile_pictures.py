"""Generates pictures that announce or hide far more work than their size suggests: one of each kind per format."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pairmill.schemas.status import Status
from tests.picture_grid import chunk, photo, saved, tiff


@dataclass(frozen=True)
class Hostile:
    """A picture that costs too much (`image_bomb`), or that must be decoded within limits (any other status)."""

    name: str
    body: bytes
    status: Status | None = None
    """None: any status is acceptable."""


def png_of_zeros(width: int, height: int, bits: int = 8, color_type: int = 0, interlaced: bool = False) -> bytes:
    """A PNG with all of its pixels present and zero."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    if interlaced:
        passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    else:
        sizes = [(width, height)]
    packer, parts = zlib.compressobj(1), []
    for columns, rows in sizes:
        row = bytes(1 + -(-columns * channels * bits // 8))
        many = row * max(1, (1 << 20) // len(row))
        for _ in range(rows // (len(many) // len(row))):
            parts.append(packer.compress(many))
        parts.append(packer.compress(row * (rows % (len(many) // len(row)))))
    data = b"".join(parts) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, int(interlaced))
    palette = chunk(b"PLTE", bytes(3)) if color_type == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def lossless_webp(width: int, height: int) -> bytes:
    """A VP8L file of 42 bytes that announces this size."""
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + struct.pack("<I", bits) + b"\x88\x88\x08" + bytes(14)
    return b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data


def lossy_webp(width: int, height: int) -> bytes:
    body = bytearray(saved(Image.new("RGB", (16, 16)), "WEBP"))
    struct.pack_into("<HH", body, 26, width, height)
    return bytes(body)


def animated_webp(width: int, height: int) -> bytes:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    body = bytearray(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    body[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(body)


def jpeg_header(width: int, height: int, **options: object) -> bytes:
    body = bytearray(saved(photo(), "JPEG", **options))
    at = body.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0") + 5
    struct.pack_into(">HH", body, at, height, width)
    return bytes(body)


def many_scans(size: tuple[int, int], count: int) -> bytes:
    """A progressive JPEG of one color, as in `with_scans`."""
    return with_scans(saved(Image.new("RGB", size, "red"), "JPEG", progressive=True), count)


def with_scans(body: bytes, count: int) -> bytes:
    """A progressive JPEG, with its last scan repeated many times."""
    last = body[body.rindex(b"\xff\xda") : -2]
    return body[:-2] + last * (count - 10) + body[-2:]


def motion_photo() -> bytes:
    """A phone's motion photo: a JPEG followed by a video, here a video of 200 progressive JPEGs."""
    film = saved(photo(), "JPEG", progressive=True)
    return saved(photo(), "JPEG", quality=95) + b"\0\0\0\x18ftypmp42" + film * 200


def multi_picture() -> bytes:
    """A camera file with several consecutive pictures, listed in the first one (CIPA DC-007)."""
    stream = io.BytesIO()
    photo().save(stream, "MPO", save_all=True, append_images=[photo()] * 70)
    return stream.getvalue()


def bmp_run_lengths(width: int, height: int, data: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    palette = bytes(byte for index in range(256) for byte in (index, 255 - index, 0, 0))
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + header + palette + data


def tiff_header(width: int, height: int, **tags: list[int]) -> bytes:
    numbers = {256: [width], 257: [height]} | {int(tag[1:]): value for tag, value in tags.items()}
    return tiff(np.zeros((2, 2, 3), np.uint32), bits=8, photometric=2, tags=numbers)


def refused() -> Iterator[Hostile]:
    """Pictures that announce too much work, most of which are refused as bombs."""
    bomb = Status.IMAGE_BOMB
    yield Hostile("png of one row", png_of_zeros(100_000_000, 1, 1), bomb)
    yield Hostile("png of one column", png_header(1, 10_000_000), bomb)
    yield Hostile("png of 2 ** 31 rows", png_header(1, 2**31 - 1), bomb)
    many = chunk(b"tEXt", b"") * 110_000
    yield Hostile("png of many chunks", png_of_zeros(8, 8)[:33] + many + png_of_zeros(8, 8)[33:], bomb)
    yield Hostile("lossless webp", lossless_webp(16_383, 6_100), bomb)
    yield Hostile("lossy webp", lossy_webp(16_383, 6_100), bomb)
    yield Hostile("animated webp", animated_webp(16_384, 6_100), bomb)
    yield Hostile("webp, wide", lossless_webp(16_383, 3_200), bomb)
    yield Hostile(
        "progressive jpeg without subsampling", jpeg_header(10_000, 9_999, progressive=True, subsampling=0), bomb
    )
    yield Hostile("jpeg of many scans", many_scans((200, 100), 100), bomb)
    yield Hostile("large jpeg of 60 scans", with_scans(jpeg_header(9_000, 9_000, progressive=True), 60), bomb)
    yield Hostile("bmp of run lengths", bmp_run_lengths(10_000, 9_999, b"\0\2\xff\xff" * 400), bomb)
    yield Hostile("bmp of endless lines", bmp_run_lengths(9_000, 9_000, b"\1\1\0\0" * 9_000), bomb)
    yield Hostile("bmp of empty runs", bmp_run_lengths(8, 8, b"\0\2\0\0" * 5_000_000), bomb)
    yield Hostile(
        "tiff of a large tile", tiff_header(16, 16, t322=[100_000], t323=[100_000], t324=[8], t325=[12]), bomb
    )
    yield Hostile(
        "tiff of many strips", tiff_header(10, 200_000, t273=[8] * 200_000, t278=[1], t279=[30] * 200_000), bomb
    )
    yield Hostile("tiff of one row", tiff_header(99_000_000, 1), bomb)
    yield Hostile("gif", gif_header(65_535, 65_535), bomb)
    yield Hostile("motion photo", motion_photo(), Status.OK)
    yield Hostile("multi-picture", multi_picture(), Status.OK)
    yield Hostile("truncated png of 100 megapixels", png_header(10_000, 9_999), Status.IMAGE_CORRUPT)
    yield Hostile("truncated tiff of 100 megapixels", tiff_header(10_000, 9_999), Status.IMAGE_CORRUPT)


def metadata_without_end() -> Iterator[Hostile]:
    """Small pictures whose metadata is costly because there is so much of it or because it is repeated."""
    ok, bomb = Status.OK, Status.IMAGE_BOMB
    large = saved(Image.new("RGB", (2_100, 2_000)), "JPEG")
    yield Hostile("jpeg that ends in fill bytes", large[:-2] + b"\xff" * 200_000)
    yield Hostile("jpeg of fill bytes and zeros", large[:-2] + (b"\xff" * 100_000 + b"\0") * 2 + b"\xff\xd9")
    jpeg, gif = saved(photo(), "JPEG"), saved(Image.new("P", (8, 8)), "GIF")
    yield Hostile("jpeg of comments", jpeg[:2] + b"\xff\xfe\0\2" * 4_500_000 + jpeg[2:], bomb)
    yield Hostile("jpeg of fill bytes", jpeg[:2] + b"\xff" * 18_000_000 + jpeg[2:], bomb)
    yield Hostile("jpeg with comments after its pixels", jpeg[:-2] + b"\xff\xfe\0\2" * 4_500_000 + jpeg[-2:], ok)
    yield Hostile("jpeg with fill bytes after its pixels", jpeg[:-2] + b"\xff" * 18_000_000 + jpeg[-2:], ok)
    palette_end = 13 + (3 * (2 << (gif[10] & 7)) if gif[10] & 0x80 else 0)
    yield Hostile("gif of comments", gif[:palette_end] + b"\x21\xfe\1a\0" * 3_600_000 + gif[palette_end:], ok)
    yield Hostile("gif of one large comment", gif[:palette_end] + b"\x21\xfe" + (b"\xff" + bytes(255)) * 70_000 + b"\0"
                  + gif[palette_end:], ok)  # fmt: skip
    png, packed = saved(photo(), "PNG"), zlib.compress(bytes(3 << 20), 9)
    for kind, head in ((b"zTXt", b"Raw profile type exif\0\0"), (b"iCCP", b"a\0\0"),
                       (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0")):  # fmt: skip
        part = chunk(kind, head + packed)
        yield Hostile(f"png of {kind.decode()}", png[:33] + part * (18_000_000 // len(part)) + png[33:], ok)
    webp = b"VP8X\n\0\0\0" + bytes(4) + b"\x07\0\0\x07\0\0" + b"ALPH\0\0\0\0" * 2_400_000
    yield Hostile("webp of empty chunks", b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp)
    boxes = (
        struct.pack(">I4sI4sI", 8_000_020, b"moov", 8_000_012, b"meta", 0) + struct.pack(">I4s", 8, b"free") * 1_000_000
    )
    yield Hostile("avif of empty boxes", saved(photo(), "AVIF") + boxes, ok)
    for tag in (700, 34675, 274, 273):  # XMP, profile, orientation, offsets of strips
        yield Hostile(f"tiff with tag {tag} repeated", tiff_of_repeated(tag, 18_000_000), ok)


def tiff_of_repeated(tag: int, num_bytes: int) -> bytes:
    """A TIFF with 60,000 entries of one tag after the regular ones, each referring to nearly all bytes of the file."""
    body = saved(Image.new("L", (8, 8)), "TIFF")
    (start,) = struct.unpack_from("<I", body, 4)
    (count,) = struct.unpack_from("<H", body, start)
    entries = body[start + 2 : start + 2 + 12 * count]
    repeated = struct.pack("<HHII", tag, 7, num_bytes, 8) * 60_000
    directory = struct.pack("<H", count + 60_000) + entries + repeated + bytes(4)
    return (body[:4] + struct.pack("<I", len(body)) + body[8:] + directory).ljust(num_bytes + 8, b"\0")


def png_header(width: int, height: int) -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )  # fmt: skip


def gif_header(width: int, height: int) -> bytes:
    body = bytearray(saved(Image.new("P", (8, 8)), "GIF"))
    struct.pack_into("<HH", body, 6, width, height)
    return bytes(body)


def most_expensive_accepted(megapixels: float) -> Iterator[Hostile]:
    """The most expensive pictures that are not refused: at 100 megapixels, just within the allowed cost."""
    side = int((megapixels * 1e6) ** 0.5)
    for color_type, bits in ((0, 1), (0, 16), (2, 8), (2, 16), (6, 8), (6, 16), (3, 8)):
        yield Hostile(f"png type {color_type} bits {bits}", png_of_zeros(side, side, bits, color_type))
    yield Hostile("png interlaced", png_of_zeros(side, side, 8, 6, interlaced=True))
    yield Hostile("png 1:10,000", png_of_zeros(side // 100, side * 100, 8, 2))
    yield Hostile("png 10,000:1", png_of_zeros(side * 100, side // 100, 8, 2))
    flat = Image.new("RGB", (side, side), "red")
    yield Hostile("jpeg", saved(flat, "JPEG"))
    yield Hostile("jpeg progressive", saved(flat, "JPEG", progressive=True))
    yield Hostile("jpeg cmyk", saved(Image.new("CMYK", (side, side)), "JPEG"))
    yield Hostile("jpeg of scans", many_scans((side, side), max(11, min(60, int(2000 / megapixels)))))
    yield Hostile("gif", saved(Image.new("P", (side, side)), "GIF"))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"):
        yield Hostile(f"tiff {compression}", saved(flat, "TIFF", compression=compression, tiffinfo={278: side}))
    yield Hostile("gif truncated", gif_header(side, side))
    yield Hostile("jpeg truncated", jpeg_header(side, side))
    part = int((megapixels * 0.35 * 1e6) ** 0.5)
    small = Image.new("RGBA", (part, part), (255, 0, 0, 100))
    yield Hostile("webp lossless", saved(small, "WEBP", lossless=True, method=0, quality=0))
    yield Hostile("webp lossy", saved(small, "WEBP", method=0))
    yield Hostile("avif", saved(small, "AVIF", speed=10, subsampling="4:4:4"))
    tenth = int((megapixels * 0.2 * 1e6) ** 0.5)
    yield Hostile("bmp of run lengths", bmp_run_lengths(tenth, tenth, b"\1\1\0\0" * tenth))
