"""Recognizes, by their headers, valid pictures that a decoder refused because it does not support them."""

import struct

_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF})  # ITU-T T.81, table B.1; CB: lossless, arithmetic
_JPEG_LS = 0xF7  # ITU-T T.87, table C.1
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, _JPEG_LS}) | _HIERARCHICAL
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_SCAN, _END = 0xDA, 0xD9
_MAX_MARKERS = 1_000

_BMP_BITS = frozenset({1, 4, 8, 16, 24, 32})
_BMP_BITFIELDS = 3


def unsupported_kind(body: bytes, format: str) -> str | None:
    """What is unusual about a picture that did not decode (Pillow's format names); None if it is simply broken. Never
    raises."""
    try:
        if format == "JPEG":
            return _jpeg(body)
        if format == "PNG":
            return "PNG for iOS (CgBI)" if body[12:16] == b"CgBI" else None
        return _bmp(body) if format == "BMP" else None
    except (struct.error, IndexError):
        return None


def _jpeg(body: bytes) -> str | None:
    offset = 2
    for _ in range(_MAX_MARKERS):
        marker = body[offset + 1]
        if body[offset] != 0xFF or marker in (_SCAN, _END):
            return None
        if marker == 0xFF:
            offset += 1
        elif marker in _STANDALONE:
            offset += 2
        elif marker in _FRAMES:
            return _frame(marker, body[offset + 4 : offset + 7])
        else:
            offset += 2 + struct.unpack_from(">H", body, offset + 2)[0]
    return None


def _frame(marker: int, header: bytes) -> str | None:
    bits, height = struct.unpack_from(">BH", header)
    if marker == _JPEG_LS:
        return "JPEG-LS"
    if marker in _HIERARCHICAL:
        return "hierarchical JPEG"
    if bits != 8:
        return f"JPEG with {bits} bits"
    return None if height else "JPEG with its height after its pixels"


def _bmp(body: bytes) -> str | None:
    (header_bytes,) = struct.unpack_from("<I", body, 14)
    if header_bytes < 40:
        return None
    bits, compression = struct.unpack_from("<HI", body, 28)
    if bits not in _BMP_BITS or compression > _BMP_BITFIELDS:
        return f"BMP with {bits} bits and compression {compression}"
    if compression != _BMP_BITFIELDS:
        return None
    struct.unpack_from("<III", body, 54)  # raises if they are missing
    return "BMP with unusual bit fields"
