"""Files without their metadata: the compressed pixels stay as they are, everything else goes (EXIF, GPS, thumbnails).

For `images.skip_reencode`. Each function gives None where the file is not what it expects; then it is encoded anew.
Formats: ITU-T T.81 annex B (JPEG), the PNG specification (third edition), RFC 9649 (WebP).
"""

import struct
from collections.abc import Iterator

_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_ADOBE_BYTES = 12  # of APP14: it says how colors are coded
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM, RSTn
_SOI, _EOI, _SOS, _APP0, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE, 0xFE
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})


def strip(body: bytes, format: str) -> bytes | None:
    """The file with its pixels alone; None where that cannot be had without encoding anew."""
    try:
        if format == "JPEG":
            return b"".join(_jpeg_parts(body))
        if format == "PNG":
            return b"".join(_png_parts(body))
        if format == "WEBP":
            return _webp(body)
    except (ValueError, IndexError, struct.error):
        return None
    return None


def _jpeg_parts(body: bytes) -> Iterator[bytes]:
    yield b"\xff\xd8"
    place = 2
    while True:
        while body[place + 1] == 0xFF:  # fill bytes
            place += 1
        if body[place] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = body[place + 1]
        if marker == _EOI:
            yield b"\xff\xd9"  # what follows is no part of the picture
            return
        if marker in _STANDALONE or marker == _SOI:
            raise ValueError("a marker out of place")
        end = place + 2 + struct.unpack_from(">H", body, place + 2)[0]
        segment = body[place:end]
        if marker == _APP0 and segment[4:9] == b"JFIF\x00":
            yield _JFIF  # without its thumbnail
        elif marker == _APP14 and segment[4:9] == b"Adobe":
            yield b"\xff\xee" + struct.pack(">H", 2 + _ADOBE_BYTES) + segment[4 : 4 + _ADOBE_BYTES]
        elif not (_APP0 <= marker <= 0xEF or marker == _COM):
            yield segment
        place = end
        if marker == _SOS:
            place = _end_of_scan(body, end)
            yield body[end:place]


def _end_of_scan(body: bytes, place: int) -> int:
    """Where the entropy-coded bytes end: at the first marker that is neither a stuffed zero nor a restart."""
    while True:
        place = body.index(b"\xff", place)
        if body[place + 1] != 0x00 and body[place + 1] not in _STANDALONE:
            return place
        place += 2


def _png_parts(body: bytes) -> Iterator[bytes]:
    yield body[:8]
    place = 8
    while True:
        length, kind = struct.unpack_from(">I4s", body, place)
        chunk = body[place : place + 12 + length]
        if kind == b"IHDR" and chunk[16] > 8:
            raise ValueError("16 bits a channel are stored as 8")
        if kind in _PNG_KEPT:
            yield chunk
        if kind == b"IEND":
            return
        place += len(chunk)
        if len(chunk) < 12 + length:
            raise ValueError("cut")


def _webp(body: bytes) -> bytes | None:
    """A simple file of the one VP8 or VP8L chunk; None for animations and pictures with a separate alpha channel."""
    place, end = 12, min(8 + struct.unpack_from("<I", body, 4)[0], len(body))
    while place < end:
        kind, length = struct.unpack_from("<4sI", body, place)
        padded = length + length % 2
        if kind in (b"ANIM", b"ANMF", b"ALPH"):
            return None
        if kind in (b"VP8 ", b"VP8L"):
            chunk = body[place : place + 8 + padded].ljust(8 + padded, b"\0")
            return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
        place += 8 + padded
    return None
