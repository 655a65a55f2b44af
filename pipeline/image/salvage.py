"""Removes metadata from files that a decoder refuses, in case only the metadata is the problem.

PNG and TIFF have their own modules (png.py, tiff.py), because their metadata is always removed first.
Formats: GIF89a (CompuServe, 1990), RFC 9649 (WebP), ISO/IEC 23008-12 (AVIF's container).
"""

import re
import struct

from pairmill.pipeline.image.strip import strip_metadata, webp_chunks

_GIF_EXTENSION, _GIF_IMAGE, _GIF_CONTROL = 0x21, 0x2C, 0xF9

_WEBP_PIXELS = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"})
_WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # profile, EXIF, XMP

_AVIF_METADATA = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))(Exif|mime)", re.DOTALL)
"""An item's entry: box type, version and flags, item number, protection, then the item's type."""


def without_metadata(body: bytes, format: str) -> bytes | None:
    """The file (Pillow's format names) without metadata; None if there is nothing to remove. Never raises."""
    try:
        if format == "JPEG":
            return strip_metadata(body, format)
        if format == "GIF":
            return _gif(body)
        if format == "WEBP":
            return _webp(body)
        if format == "AVIF":
            return _AVIF_METADATA.sub(rb"\1skip", body)
    except (ValueError, IndexError, struct.error):
        return None
    return None


def _gif(body: bytes) -> bytes:
    """Remove the comments and extensions before the first picture, except the last extension that sets its transparent
    color."""
    start = 13 + (3 * (2 << (body[10] & 7)) if body[10] & 0x80 else 0)
    control, offset = b"", start
    while body[offset] == _GIF_EXTENSION:
        end = offset + 2
        while body[end]:  # sub-blocks, each preceded by its length
            end += body[end] + 1
        if body[offset + 1] == _GIF_CONTROL:
            control = body[offset : end + 1]
        offset = end + 1
    return body[:start] + control + body[offset:]


def _webp(body: bytes) -> bytes:
    """Keep only the pixel chunks, and the header without the metadata flags."""
    kept = []
    for kind, chunk in webp_chunks(body):
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes((chunk[8] & ~_WEBP_METADATA_FLAGS,)) + chunk[9:]
        if kind in _WEBP_PIXELS:
            kept.append(chunk)
    chunks = b"".join(kept)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
