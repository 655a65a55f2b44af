"""Strips metadata (EXIF, GPS positions, thumbnails) from a file and keeps its compressed pixels as they are.

If a file is not as expected, the result is None, and the picture is encoded again. The same applies to a PNG with bytes
after its pixels, in any chunk. In a WebP, only the decoder knows where the pixels end, so bytes after them in the same
chunk stay.
Formats: ITU-T T.81 annex B (JPEG), the PNG specification (third edition), RFC 9649 (WebP).
"""

import contextlib
import re
import struct
import zlib
from collections.abc import Callable, Iterator

JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_JFIF_BYTES = 14  # length of APP0 in JFIF files; like libjpeg, we ignore shorter ones, which say nothing about colors
_ADOBE_BYTES = 12  # length of APP14, which specifies how colors are coded
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM, RSTn
_SOI, _EOI, _SOS, _APP0, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE, 0xFE
_MAX_JPEG_SEGMENTS = 10_000
"""Real pictures have up to a few hundred segments. Each takes a microsecond, even an empty one of four bytes."""
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)
_FILL = re.compile(rb"\xff+(?=\xff)")  # optional bytes before a marker
_MAX_WEBP_CHUNKS = 10_000  # an animation has two or three for each of its frames
_PNG_PALETTE = 3
_PNG_CHANNELS = {0: 1, 2: 3, _PNG_PALETTE: 1, 4: 2, 6: 4}
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, and steps of each pass (section 8.1)."""
_UNPACK_BYTES = 1 << 20


def strip_metadata(body: bytes, format: str) -> bytes | None:
    """The file (Pillow's format names) with nothing but its pixels; None if that requires re-encoding."""
    try:
        if format == "JPEG":
            return b"".join(part for _, part in jpeg_parts(body))
        if format == "PNG":
            return b"".join(_png_parts(body))
        if format == "WEBP":
            return _webp(body)
    except (ValueError, KeyError, IndexError, struct.error):
        return None
    return None


def jpeg_parts(
    body: bytes, keeps: Callable[[int, bytes], bool] = lambda marker, segment: False
) -> Iterator[tuple[int, bytes]]:
    """(marker, bytes) of each part that decoding a JPEG needs, and of the metadata that `keeps` accepts, in order.
    Entropy-coded bytes follow their scan header.

    Raises ValueError, IndexError or struct.error if the file is not as expected.
    """
    yield _SOI, b"\xff\xd8"
    offset = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        if (fill := _FILL.match(body, offset)) is not None:
            offset = fill.end()
        if body[offset] != 0xFF:
            raise ValueError("marker expected")
        marker = body[offset + 1]
        if marker == _EOI:
            yield _EOI, b"\xff\xd9"  # what follows is not part of the picture
            return
        if marker in _STANDALONE or marker == _SOI:
            raise ValueError("misplaced marker")
        end = offset + 2 + struct.unpack_from(">H", body, offset + 2)[0]
        segment = body[offset:end]
        if marker == _APP0 and segment[4:9] == b"JFIF\x00" and len(segment) >= 4 + _JFIF_BYTES:
            yield _APP0, JFIF  # without its thumbnail
        elif marker == _APP14 and segment[4:9] == b"Adobe" and len(segment) >= 4 + _ADOBE_BYTES:  # as in libjpeg
            yield _APP14, b"\xff\xee" + struct.pack(">H", 2 + _ADOBE_BYTES) + segment[4 : 4 + _ADOBE_BYTES]
        elif not (_APP0 <= marker <= 0xEF or marker == _COM) or keeps(marker, segment):
            yield marker, segment
        offset = end
        if marker == _SOS:
            offset = _end_of_scan(body, end)
            yield marker, body[end:offset]
    raise ValueError("too many segments")


def _end_of_scan(body: bytes, offset: int) -> int:
    """The offset at which the entropy-coded bytes end: at the first marker that is neither a stuffed zero nor a
    restart."""
    found = _END_OF_SCAN.search(body, offset)
    if found is None:
        raise ValueError("a scan without an end")
    return found.start()


def _png_parts(body: bytes) -> Iterator[bytes]:
    """The chunks with pixels. Raises ValueError if they contain anything else."""
    yield body[:8]
    offset = 8
    compressed = list[bytes]()
    header = struct.unpack_from(">IIBBxxB", body, 16)
    while True:
        length, kind = struct.unpack_from(">I4s", body, offset)
        chunk = body[offset : offset + 12 + length]
        if kind == b"IHDR" and chunk[16] > 8:
            raise ValueError("16 bits per channel, which must be stored as 8")
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            compressed.append(chunk[8:-4])
        if kind in (b"IHDR", b"IDAT") or (kind == b"PLTE" and header[3] == _PNG_PALETTE):
            yield chunk
        offset += len(chunk)
        if len(chunk) < 12 + length:
            raise ValueError("truncated")
    if not _is_filled_exactly(b"".join(compressed), _png_bytes(*header)):
        raise ValueError("bytes after the pixels")
    yield _PNG_END


def _png_bytes(width: int, height: int, bits: int, color_type: int, interlaced: int) -> int:
    """The number of bytes in the unpacked rows, each with its filter type (sections 7.2 and 8)."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, step_x, step_y in passes:
        columns, rows = -(-max(width - left, 0) // step_x), -(-max(height - top, 0) // step_y)
        total += rows * (1 + -(-columns * bits * _PNG_CHANNELS[color_type] // 8)) if columns else 0
    return total


def _is_filled_exactly(compressed: bytes, num_bytes: int) -> bool:
    """Whether zlib data ends where it should and unpacks to this many bytes."""
    unpacker = zlib.decompressobj()
    found = 0
    try:
        while not unpacker.eof and found <= num_bytes:
            data = unpacker.decompress(compressed, _UNPACK_BYTES)
            compressed = unpacker.unconsumed_tail
            found += len(data)
            if not data and not compressed:
                break
    except zlib.error:
        return False
    return unpacker.eof and found == num_bytes and not unpacker.unused_data


def _webp(body: bytes) -> bytes | None:
    """A file with just the VP8 or VP8L chunk; None for animations and pictures with a separate alpha channel."""
    for kind, chunk in webp_chunks(body):
        if kind in (b"ANIM", b"ANMF", b"ALPH"):
            return None
        if kind in (b"VP8 ", b"VP8L"):
            return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
    return None


def webp_chunks(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, chunk with a zero as its byte of padding, if any) of each of the first 10,000 chunks, up to the first that
    is cut off."""
    offset, end = 12, min(8 + struct.unpack_from("<I", body, 4)[0], len(body))
    for _ in range(_MAX_WEBP_CHUNKS):
        if offset + 8 > end:
            return
        kind, length = struct.unpack_from("<4sI", body, offset)
        chunk = body[offset : offset + 8 + length]
        if len(chunk) < 8 + length:
            return
        yield kind, chunk + bytes(length % 2)
        offset += 8 + length + length % 2


def webp_size(body: bytes) -> tuple[int, int] | None:
    """(width, height) of the canvas (RFC 9649, sections 2.5 to 2.7), regardless of what precedes it; None if it is
    missing."""
    with contextlib.suppress(struct.error):
        for kind, chunk in webp_chunks(body):
            if kind == b"VP8X" and len(chunk) >= 18:
                return int.from_bytes(chunk[12:15], "little") + 1, int.from_bytes(chunk[15:18], "little") + 1
            if kind == b"VP8L" and len(chunk) >= 13:
                bits = int.from_bytes(chunk[9:13], "little")
                return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            if kind == b"VP8 " and len(chunk) >= 18:
                return int.from_bytes(chunk[14:16], "little") & 0x3FFF, int.from_bytes(chunk[16:18], "little") & 0x3FFF
    return None
