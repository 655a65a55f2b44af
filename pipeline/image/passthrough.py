"""THE place where a picture keeps its own compressed pixels instead of being encoded again (docs/decisions/012).

This loses no quality, and saves the encoding and most of the decoding. If the size, orientation and colors do not
change, these JPEGs pass:

    frame         baseline, extended with 8 bits, progressive   no: 12 bits, lossless, hierarchical, arithmetic coding
    components    one (gray), or three as Y, Cb, Cr             no: RGB, CMYK, and colors that can only be guessed
    sampling      4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1             no: others, which some decoders do not support
    restarts      any
    profile       none, or one that changes nothing             no: others; pixels are stored in sRGB
    bytes         at most four per pixel, plus 8 KiB            no: more, such as thousands of tables
    other parts   scans and the tables that they use are kept; other tables, EXIF, XMP, ICC, comments, thumbnails
                  and everything after the picture are dropped

All entropy-coded bytes of the result are decoded once, so it is as sound as a newly encoded picture.
"""

import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg

from pairmill.pipeline.image.jpeg_tables import without_unused_tables
from pairmill.pipeline.image.one_color import TOLERANCE, is_one_color
from pairmill.pipeline.image.phash import block_side, phash, phash_of_blocks
from pairmill.pipeline.image.resize import Pixels
from pairmill.pipeline.image.strip import JFIF, jpeg_parts

_SOF0, _SOF1, _SOF2 = 0xC0, 0xC1, 0xC2  # ITU-T T.81, table B.1: baseline, extended, progressive
_SOI, _EOI, _SOS, _DHT, _DQT, _DRI, _APP0, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE
_FRAMES = frozenset({_SOF0, _SOF1, _SOF2})
_KEPT = _FRAMES | {_SOI, _EOI, _SOS, _DHT, _DQT, _DRI}
_PLAIN = frozenset({_DHT, _DQT, _DRI, _COM})

_SAMPLINGS = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}
"""Sampling factors of Y, (horizontal, vertical), for Cb and Cr with factors of 1."""

_BYTES_PER_PIXEL, _TABLES_BYTES = 4, 8_192
"""Noise at quality 100 and 4:4:4 takes about three bytes per pixel."""

_YCBCR_TRANSFORM = 1
"""The color transform in Adobe's APP14 segment (Adobe Technical Note 5116, section 18)."""


_MAX_HEADER_SEGMENTS = 64
"""Real pictures have about ten segments before their pixels."""


@dataclass(frozen=True, slots=True)
class PassedPicture:
    """A picture that keeps its compressed pixels."""

    image: bytes
    """The file without metadata."""
    phash: str
    one_color: bool
    pixels: Pixels | None = None
    """All pixels, if they were requested."""


def plain_jpeg_size(body: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels of a plain JPEG: baseline, with one scan, and without EXIF, profiles or anything else
    that could change how it looks. None for all others, which need a full parser."""
    if not body.startswith(b"\xff\xd8\xff"):
        return None
    size, components, offset = None, b"", 2
    try:
        for _ in range(_MAX_HEADER_SEGMENTS):
            start, marker, length = struct.unpack_from(">BBH", body, offset)
            if start != 0xFF:
                return None
            if marker == _SOS:
                return size if body[offset + 4 : offset + 5] == components else None
            if marker in (_SOF0, _SOF1) and size is None:
                height, width = struct.unpack_from(">HH", body, offset + 5)
                size, components = (width, height), body[offset + 9 : offset + 10]
            elif marker not in _PLAIN and not (marker == _APP0 and body[offset + 4 : offset + 9] == b"JFIF\0"):
                return None
            offset += 2 + length
    except struct.error:
        return None
    return None


def pass_jpeg(body: bytes, width: int, height: int, with_pixels: bool = False) -> PassedPicture | None:
    """The JPEG with its own compressed pixels and nothing else; None if it has to be encoded again.

    `width` and `height`: as in its header, in pixels. `with_pixels`: decode it at full size, which takes 1.5 times as
    long.
    """
    try:
        image = _own_pixels(body, width, height)
        if image is None or len(image) > width * height * _BYTES_PER_PIXEL + _TABLES_BYTES:
            return None
        return _verify_whole(image, width, height) if with_pixels else _verify(image, width, height)
    except (ValueError, IndexError, struct.error):  # not as expected, or simplejpeg's decoder warns
        return None


def _own_pixels(body: bytes, width: int, height: int) -> bytes | None:
    kept, frames, has_jfif, transform = [], [], False, None
    for marker, part in jpeg_parts(body):
        if marker == _APP0:
            has_jfif = True
        elif marker == _APP14:
            transform = part[15]
        elif marker not in _KEPT:
            return None
        else:
            kept.append((marker, part))
            frames += [part] if marker in _FRAMES else []
    if len(frames) != 1 or struct.unpack_from(">HH", frames[0], 5) != (height, width):
        return None
    if not _passes(frames[0], has_jfif, transform):
        return None
    start, *rest = without_unused_tables(kept, _FRAMES)
    return b"".join([start, JFIF, *rest])  # JFIF means that three components are Y, Cb, Cr


def _passes(frame: bytes, has_jfif: bool, transform: int | None) -> bool:
    """Whether the rules allow this frame header (T.81, B.2.2)."""
    precision, num_components = frame[4], frame[9]
    components = [tuple(frame[offset : offset + 2]) for offset in range(10, 10 + 3 * num_components, 3)]
    if precision != 8 or num_components not in (1, 3):
        return False
    if num_components == 1:
        return True
    factors = [(factor >> 4, factor & 15) for _, factor in components]
    is_ycbcr = has_jfif or transform is not None or [name for name, _ in components] == [1, 2, 3]
    is_clear = is_ycbcr and transform in (None, _YCBCR_TRANSFORM)
    return is_clear and factors[0] in _SAMPLINGS and factors[1:] == [(1, 1), (1, 1)]


def _verify(jpeg: bytes, width: int, height: int) -> PassedPicture | None:
    """Decode all entropy-coded bytes, at the smallest scale that is enough. Raises ValueError if the decoder warns."""
    side = block_side(width, height)
    columns, rows = -(-width // side), -(-height // side)
    means = simplejpeg.decode_jpeg(jpeg, "GRAY", min_width=columns, min_height=rows, min_factor=8.0)[..., 0]
    if means.shape != (rows, columns):
        return None
    is_varied = int(np.max(means)) - int(np.min(means)) > TOLERANCE  # if the means vary, so do the pixels
    one_color = not is_varied and is_one_color(simplejpeg.decode_jpeg(jpeg, "RGB"))
    return PassedPicture(jpeg, phash_of_blocks(means, width, height), one_color)


def _verify_whole(jpeg: bytes, width: int, height: int) -> PassedPicture | None:
    """Like `_verify`, at full size. Its hash can differ in up to two bits. Raises ValueError if the decoder warns."""
    pixels: Pixels = simplejpeg.decode_jpeg(jpeg, "RGB")
    if pixels.shape[:2] != (height, width):
        return None
    return PassedPicture(jpeg, phash(pixels), is_one_color(pixels), pixels)
