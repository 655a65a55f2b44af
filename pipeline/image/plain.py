"""Makes pictures look the same in every reader: without EXIF rotation, alpha or color profile, in RGB or gray with 8
bits per channel.

Readers of exports interpret files differently: most ignore the orientation, drop the alpha channel instead of
compositing it, clip 16 bits, and do not support color profiles. So an exported picture must not depend on any of these.
"""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from pairmill.pipeline.image import sniff
from pairmill.pipeline.image.color import changes_nothing, color_space
from pairmill.pipeline.image.jpeg import PLAIN_FRAMES, count_scans
from pairmill.pipeline.image.orientation import NORMAL_ORIENTATION
from pairmill.pipeline.image.processor import ImageProcessor

TRAINER_FORMATS = frozenset({"JPEG", "PNG", "WEBP"})
"""The formats that trainers look for in a tar."""

_PLAIN_MODES = frozenset({"RGB", "L"})
_SPACES = {"RGB": "RGB ", "L": "GRAY"}
"""ICC's name for the color space of a mode."""
_PLAIN_CHUNKS = frozenset({b"IHDR", b"IDAT", b"IEND", b"PLTE", b"pHYs", b"sRGB", b"tIME", b"bKGD"})
"""PNG chunks that change no pixels in any reader, in 8-bit files without transparency."""
_GRAY, _RGB, _PALETTE = 0, 2, 3
_GRAPHICS_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 6]  # zlib's own default
_PHOTO_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
"""For photographs, in which few bytes repeat: 32 photographs with profiles take 14 ms and 499 kB on average, but 43 ms
and 492 kB with _GRAPHICS_PNG."""


def plain_picture(body: bytes, processor: ImageProcessor) -> bytes:
    """The same bytes if every reader sees the same pixels as `processor`; otherwise, a PNG of what `processor` sees.

    For nearly all files, the header is enough to decide. The others are decoded twice. Raises ImageError.
    """
    found = sniff.image_format(body[: sniff.FORMAT_HEAD_BYTES])
    if found in TRAINER_FORMATS and _has_plain_header(body, found):
        return body
    pixels = processor.pixels(body)  # uint8 [height, width, 3]
    if found in TRAINER_FORMATS and _is_common(body, found) and _shows(body, pixels):
        return body
    options = _PHOTO_PNG if found == "JPEG" else _GRAPHICS_PNG
    _, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return encoded.tobytes()


def _has_plain_header(body: bytes, found: str) -> bool:
    if found == "JPEG":
        return _is_plain_jpeg(body)
    try:
        return _is_plain_png(body) if found == "PNG" else _is_plain_webp(body)
    except (struct.error, IndexError):
        return False


def _is_plain_jpeg(body: bytes) -> bool:
    """Whether a JPEG is RGB or gray, coded as nearly all are, without rotation, and without a profile that changes its
    pixels. Damage in its compressed pixels looks the same in every reader."""
    try:
        with Image.open(BytesIO(body), formats=["JPEG"]) as opened:
            return (
                opened.mode in _PLAIN_MODES
                and _is_common(body, "JPEG")
                and not _has_effect(opened.info.get("icc_profile"), opened.mode)
                and _orientation(opened) == NORMAL_ORIENTATION
            )
    except Exception:  # as in decode.open_image
        return False


def _has_effect(profile: object, mode: str) -> bool:
    """Whether this profile changes the pixels that were scored. A profile for another color space is ignored."""
    if not isinstance(profile, bytes) or color_space(profile) != _SPACES[mode]:
        return False
    return not changes_nothing(profile)


def _is_plain_png(body: bytes) -> bool:
    depth, color_type = body[24], body[25]
    kinds = list(_png_chunks(body))
    is_whole = kinds[-1:] == [b"IEND"] and _PLAIN_CHUNKS.issuperset(kinds)
    return is_whole and depth == 8 and color_type in (_GRAY, _RGB, _PALETTE)


def _png_chunks(body: bytes) -> Iterator[bytes]:
    """The type of each chunk up to IEND, or up to the first chunk with a wrong checksum."""
    offset, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", body, offset)
        (checksum,) = struct.unpack_from(">I", body, offset + 8 + length)
        if zlib.crc32(body[offset + 4 : offset + 8 + length]) != checksum:
            return
        yield kind
        offset += 12 + length


def _is_plain_webp(body: bytes) -> bool:
    """Whether the file has one chunk of pixels without alpha, and nothing else (RFC 9649, "simple" file formats)."""
    size, kind, length = struct.unpack_from("<I4x4sI", body, 4)
    if size != 12 + length + length % 2 or len(body) < 8 + size:
        return False
    has_alpha = kind == b"VP8L" and bool(body[24] & 0x10)  # the bit after width and height
    return kind in (b"VP8 ", b"VP8L") and not has_alpha


def _is_common(body: bytes, found: str) -> bool:
    """Whether all readers support the file's coding: they clip, scale or keep more than 8 bits per channel, and many
    refuse JPEGs with lossless or arithmetic coding."""
    if found == "JPEG":
        return count_scans(body)[1] in PLAIN_FRAMES
    return found != "PNG" or body[24] <= 8


def _shows(body: bytes, pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether a reader that ignores all metadata, such as `PIL.Image.open(...).convert("RGB")`, sees these pixels."""
    try:
        with Image.open(BytesIO(body)) as opened:
            opened.load()
            is_plain = opened.mode in _PLAIN_MODES and getattr(opened, "n_frames", 1) == 1
            is_plain = is_plain and "transparency" not in opened.info and _orientation(opened) == NORMAL_ORIENTATION
            return is_plain and np.array_equal(np.asarray(opened.convert("RGB")), pixels)
    except Exception:  # as in decode.open_image; an unreadable file does not show the pixels
        return False


def _orientation(opened: Image.Image) -> object:
    """The EXIF or XMP orientation. For broken metadata, raises any exception, as it does in readers."""
    return opened.getexif().get(ExifTags.Base.Orientation, NORMAL_ORIENTATION)
