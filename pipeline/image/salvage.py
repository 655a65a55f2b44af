"""Removes metadata from files that a decoder refuses, in case only the metadata is the problem: first all but the
orientation and the profile, which change how the picture looks, then those too.

PNG and TIFF have their own modules (png.py, tiff.py), because their metadata is always removed first.
Formats: GIF89a (CompuServe, 1990), RFC 9649 (WebP), ISO/IEC 23008-12 (AVIF's container).
"""

import re
import struct
from collections.abc import Callable, Iterator

from pairmill.pipeline.image.strip import jpeg_parts, strip_metadata, webp_chunks

_GIF_EXTENSION, _GIF_IMAGE, _GIF_CONTROL = 0x21, 0x2C, 0xF9

_EXIF_OR_XMP, _APP2 = 0xE1, 0xE2
_ICC_SEGMENT, _ICC_HEADER_BYTES = b"ICC_PROFILE\0", 18

_WEBP_PLACES = {b"VP8X": 0, b"ICCP": 1, b"EXIF": 3, b"XMP ": 4}
"""RFC 9649, section 2.7: the order that libwebp expects, with all chunks of pixels in place 2."""
_WEBP_PIXELS = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"})
_WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # profile, EXIF, XMP

_AVIF_METADATA = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))(Exif|mime)", re.DOTALL)
"""An item's entry: box type, version and flags, item number, protection, then the item's type."""


def without_metadata(body: bytes, format: str) -> Iterator[bytes]:
    """Versions of the file (Pillow's format names) with less and less metadata; none if there is nothing to remove.
    Never raises."""
    for reduce in _REDUCTIONS.get(format, ()):
        try:
            reduced = reduce(body)
        except (ValueError, IndexError, struct.error):
            continue
        if reduced is not None and reduced != body:
            yield reduced


def _jpeg_with_looks(body: bytes) -> bytes:
    return b"".join(part for _, part in jpeg_parts(body, _affects_looks))


def _affects_looks(marker: int, segment: bytes) -> bool:
    """Whether a segment holds the orientation or a part of the profile. Pillow refuses parts without a number."""
    is_profile = marker == _APP2 and segment[4:16] == _ICC_SEGMENT and len(segment) >= _ICC_HEADER_BYTES
    return marker == _EXIF_OR_XMP or is_profile


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


def _webp_with_looks(body: bytes) -> bytes:
    """Keep the pixel chunks and the metadata, in the order that libwebp expects."""
    kept = [(kind, chunk) for kind, chunk in webp_chunks(body) if kind in _WEBP_PIXELS | _WEBP_PLACES.keys()]
    kept.sort(key=lambda each: _WEBP_PLACES.get(each[0], 2))
    return _webp_file([chunk for _, chunk in kept])


def _webp(body: bytes) -> bytes:
    """Keep only the pixel chunks, and the header without the metadata flags."""
    kept = []
    for kind, chunk in webp_chunks(body):
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes((chunk[8] & ~_WEBP_METADATA_FLAGS,)) + chunk[9:]
        if kind in _WEBP_PIXELS:
            kept.append(chunk)
    return _webp_file(kept)


def _webp_file(chunks: list[bytes]) -> bytes:
    data = b"".join(chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(data)) + b"WEBP" + data


def _avif(body: bytes) -> bytes:
    """Hide EXIF and XMP. The orientation and the profile are properties of the picture (ISO/IEC 23000-22, 7.3.10)."""
    return _AVIF_METADATA.sub(rb"\1skip", body)


_REDUCTIONS: dict[str, tuple[Callable[[bytes], bytes | None], ...]] = {
    "JPEG": (_jpeg_with_looks, lambda body: strip_metadata(body, "JPEG")),
    "GIF": (_gif,),
    "WEBP": (_webp_with_looks, _webp),
    "AVIF": (_avif,),
}
