"""Reduces a TIFF to the tags that describe pixels; all others are dropped before Pillow and libtiff see them.

In grayscale pictures, Pillow ignores WhiteIsZero (tag 262) above 8 bits and mistakes signed 8-bit samples (339) for
unsigned ones. So Pillow gets every grayscale picture as BlackIsZero and unsigned, and `Samples` tells rgb.py the rest.
Source: TIFF 6.0 (Adobe, 1992), sections 3, 8, 11, 19 and 22.
"""

import contextlib
import struct
import sys
from typing import Any

from PIL import Image, TiffImagePlugin

from pairmill.pipeline.image.bounded_stream import BoundedStream
from pairmill.pipeline.image.rgb import Samples, UnsupportedMode

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6
_UNCOMPRESSED, _LZW, _OLD_JPEG = 1, 5, 6
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_NOT_BUILT_IN = frozenset({32809, 50001})
"""Compressions (ThunderScan, WebP) that Pillow knows, but the libtiff in its wheels does not."""
_FAX = frozenset({2, 3, 4, 32771})  # fax compressions, in which zero is white

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_SAMPLES_PER_PIXEL, _ROWS_PER_STRIP, _SAMPLE_FORMAT, _EXTRA_SAMPLES = 277, 278, 339, 338
_STRIP_OFFSETS, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 273, 322, 323, 324
_FILL_ORDER, _PLANAR, _PREDICTOR, _COLOR_MAP, _JPEG_TABLES, _ICC_PROFILE = 266, 284, 317, 320, 347, 34675
_ORIENTATION, _XMP, _BIG_TIFF = 274, 700, 43
_BIG_ENDIAN_BIG_TIFF = b"MM\0+"
_STRIP_BYTES, _TILE_BYTES, _YCBCR_TAGS = 279, 325, (529, 530, 531, 532)

_PIXEL_TAGS = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _ROWS_PER_STRIP, _SAMPLE_FORMAT}
    | {_EXTRA_SAMPLES, _STRIP_OFFSETS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES}
    | {_FILL_ORDER, _PLANAR, _PREDICTOR, _COLOR_MAP, _JPEG_TABLES, *_YCBCR_TAGS}
)
_TAGS_OF_COMPRESSIONS = {3: {292}, 4: {293}, _OLD_JPEG: {512, 513, 514, 515, 517, 518, 519, 520, 521}}
"""Tags that only these compressions need: for fax (3 and 4), whether rows are coded relative to the row above."""


_MAX_ENTRIES = 0xFFFF
"""Maximum number of entries in a directory. BigTIFF itself has no limit, but no real picture has more."""


class TiffFile(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF reader for a picture as stored, not rotated."""

    samples: Samples
    buffer_bytes: int
    """Bytes that decoding takes in addition to the picture: the size of the largest strip or tile."""
    num_parts: int
    """Number of strips or tiles."""

    @property
    def tag_v2(self) -> TiffImagePlugin.ImageFileDirectory_v2:
        """The tags of the directory."""
        return self._tags

    @tag_v2.setter
    def tag_v2(self, tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
        """Called once, when Pillow has read the file's header. Of a big-endian BigTIFF, it looks for the version in the
        wrong byte, so it takes the file for a classic TIFF."""
        assert self.fp is not None
        self.fp.seek(0)
        if (header := self.fp.read(16)).startswith(_BIG_ENDIAN_BIG_TIFF):
            tags = TiffImagePlugin.ImageFileDirectory_v2(b"II+\0" + header[4:], prefix=TiffImagePlugin.MM)
        self._tags = tags

    def _setup(self) -> None:
        _refuse_compressions(self.tag_v2)
        _leave_to_libtiff(self.tag_v2)
        _settle_planes(self.tag_v2)
        _widen_palette(self.tag_v2)
        self.samples = _normalize(self.tag_v2)
        self.num_parts, self.buffer_bytes = _parts(self.tag_v2)
        try:
            super()._setup()
        except SyntaxError as error:
            raise UnsupportedMode(str(error)) from error
        if _is_planar(self.tag_v2) and len(self.getbands()) == 2:
            raise UnsupportedMode(f"pixel mode {self.mode} in planes")  # Pillow loses the alpha

    def load_end(self) -> None:
        """Do nothing: Pillow would rotate the picture here."""


def read_tiff(body: bytes) -> TiffFile:
    """Open a TIFF with only the pixel tags in its directory, because any broken tag makes libtiff reject the
    picture. Profile and orientation are in `info`. Raises what Pillow raises, and UnsupportedMode."""
    metadata: dict[str, bytes] = {}
    cleaned = bytearray(body)
    with contextlib.suppress(struct.error):  # truncated: Pillow reports it
        _clean_directory(cleaned, metadata)
    opened = TiffFile(BoundedStream(cleaned))
    opened.info.update(metadata)
    return opened


def _clean_directory(body: bytearray, metadata: dict[str, bytes]) -> None:
    """Rewrite the first directory in place: it can only become shorter, so nothing else moves.

    If a tag has several entries, only the first is read, as in libtiff: all of them could point to the same 20 MB.
    """
    order = ">" if body[:2] == b"MM" else "<"
    is_big = body[2] + body[3] == _BIG_TIFF
    start = struct.unpack_from(order + ("Q" if is_big else "I"), body, 8 if is_big else 4)[0]
    count_format, entry_format, next_format = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I")
    first = start + struct.calcsize(count_format)
    (count,) = struct.unpack_from(order + count_format, body, start)
    entry_bytes = struct.calcsize(order + entry_format)
    if first + count * entry_bytes > len(body) or count > _MAX_ENTRIES:
        return
    entries, needed, seen = list[tuple[int, bytes]](), set[int](), set[int]()
    for at in range(first, first + count * entry_bytes, entry_bytes):
        tag, kind, values, _ = struct.unpack_from(order + entry_format, body, at)
        if tag in seen:
            continue
        seen.add(tag)
        entries.append((tag, bytes(body[at : at + entry_bytes])))
        if tag == _COMPRESSION:
            number = int.from_bytes(_data(body, at, order, is_big, kind, values), "big" if order == ">" else "little")
            needed = _TAGS_OF_COMPRESSIONS.get(number, set())
        elif tag in (_ORIENTATION, _XMP, _ICC_PROFILE):
            _keep_metadata(tag, _data(body, at, order, is_big, kind, values), order, metadata)
    kept = [entry for tag, entry in entries if tag in _PIXEL_TAGS or tag in needed]
    rest = b"".join(kept) + bytes(struct.calcsize(next_format))
    struct.pack_into(order + count_format, body, start, len(kept))
    body[first : first + len(rest)] = rest


def _data(body: bytearray, at: int, order: str, is_big: bool, kind: int, values: int) -> bytes:
    """The value of a directory entry of bytes, shorts or longs, as bytes; empty if the entry is broken."""
    size = values * {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}.get(kind, 0)
    inline, start = (8, at + 12) if is_big else (4, at + 8)
    if size > inline:
        (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), body, start)
    return bytes(body[start : start + size]) if start + size <= len(body) else b""


def _keep_metadata(tag: int, data: bytes, order: str, metadata: dict[str, bytes]) -> None:
    if tag == _ORIENTATION and len(data) in (2, 4):
        orientation = int.from_bytes(data, "big" if order == ">" else "little")
        if orientation in range(1, 9):
            exif = Image.Exif()
            exif[tag] = orientation
            metadata["exif"] = exif.tobytes()
    elif tag == _XMP and data:
        metadata["xmp"] = data
    elif tag == _ICC_PROFILE and data:
        metadata["icc_profile"] = data


def _refuse_compressions(tags: Any) -> None:
    """Raise UnsupportedMode for what Pillow cannot unpack."""
    compression = _first(tags, _COMPRESSION)
    if compression is not None and compression not in TiffImagePlugin.COMPRESSION_INFO.keys() - _NOT_BUILT_IN:
        raise UnsupportedMode(f"TIFF compression {compression}")
    if compression == _OLD_JPEG and _first(tags, _SAMPLES_PER_PIXEL) != 3:
        raise UnsupportedMode("TIFF with an old-style JPEG that is not in color")  # libtiff refuses grayscale


def _is_planar(tags: Any) -> bool:
    """Whether each of several channels has strips of its own."""
    return _first(tags, _PLANAR) == 2 and (_first(tags, _SAMPLES_PER_PIXEL) or 1) > 1


def _leave_to_libtiff(tags: Any) -> None:
    """Have libtiff unpack what Pillow gets wrong in uncompressed files: planes, for which it takes single letters of a
    mode's name as modes (Pillow#4621), and YCbCr with subsampled chroma. Pillow leaves files that claim to be
    compressed to libtiff, which reads the tag in the file."""
    is_misread = _is_planar(tags) or _first(tags, _PHOTOMETRIC) == _YCBCR
    if is_misread and _first(tags, _COMPRESSION) in (None, _UNCOMPRESSED):
        tags[_COMPRESSION] = _LZW


def _settle_planes(tags: Any) -> None:
    """Ignore the tag if there is only one channel, and drop the last planes while they are neither color nor alpha.
    Pillow drops them only if there is no alpha, and `_normalize` has to know which pictures are grayscale."""
    if not _is_planar(tags):
        tags[_PLANAR] = 1
        return
    extra = list(tags.get(_EXTRA_SAMPLES) or ())
    if not extra or extra[-1] != 0:
        return
    num_planes = _first(tags, _SAMPLES_PER_PIXEL) or 1
    while extra and extra[-1] == 0 and num_planes > 1:
        extra.pop()
        num_planes -= 1
    tags[_SAMPLES_PER_PIXEL], tags[_BITS] = num_planes, tags.get(_BITS, (1,))[:num_planes]
    tags[_EXTRA_SAMPLES] = tuple(extra)


def _widen_palette(tags: Any) -> None:
    """Scale an 8-bit palette to 16 bits. Colors have 16 bits, but some writers store 8, which libtiff assumes if no
    value is larger."""
    colors = tags.get(_COLOR_MAP)
    if colors and max(colors) < 256:  # Pillow would show black (Pillow#2157)
        tags[_COLOR_MAP] = tuple(color * 257 for color in colors)


def _normalize(tags: Any) -> Samples:
    """Rewrite the tags of a grayscale picture to unsigned BlackIsZero, and return what they were."""
    compression, per_pixel = _first(tags, _COMPRESSION), _first(tags, _SAMPLES_PER_PIXEL) or 1
    if _first(tags, _PHOTOMETRIC) is None:  # the same guess as libtiff's
        tags[_PHOTOMETRIC] = _RGB if per_pixel >= 3 else _WHITE_IS_ZERO if compression in _FAX else _BLACK_IS_ZERO
    photometric, bits = _first(tags, _PHOTOMETRIC), _first(tags, _BITS) or 1
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) or per_pixel != 1:
        return Samples()
    tags[_PHOTOMETRIC] = _BLACK_IS_ZERO
    sample_format = _first(tags, _SAMPLE_FORMAT) or _UNSIGNED
    if sample_format != _FLOAT:
        tags[_SAMPLE_FORMAT] = _SIGNED if bits == 32 else _UNSIGNED  # at 32 bits, Pillow reads only signed samples
    if bits == 12 or (bits == 32 and compression not in (None, 1)):
        # 12 bits are packed the same way in both byte orders, but Pillow reads only one. libtiff returns 32-bit samples
        # in the machine's order, which Pillow supports only for 16 bits.
        tags._prefix = TiffImagePlugin.II if bits == 12 or sys.byteorder == "little" else TiffImagePlugin.MM
    return Samples(
        bits,
        is_signed=sample_format == _SIGNED and bits >= 8,
        is_inverted=photometric == _WHITE_IS_ZERO,
    )


def _parts(tags: Any) -> tuple[int, int]:
    """(number of strips or tiles, bytes of the largest one once unpacked)."""
    width, height = _first(tags, _WIDTH) or 0, _first(tags, _HEIGHT) or 0
    pixel_bytes = max(4, -(-(_first(tags, _BITS) or 1) * (_first(tags, _SAMPLES_PER_PIXEL) or 1) // 8))
    offsets = tags.get(_TILE_OFFSETS if _TILE_OFFSETS in tags else _STRIP_OFFSETS) or ()
    if _TILE_OFFSETS in tags:
        part = (_first(tags, _TILE_WIDTH) or 0) * (_first(tags, _TILE_HEIGHT) or 0)
    else:
        part = width * min(height, _first(tags, _ROWS_PER_STRIP) or height)
    return len(offsets), part * pixel_bytes


def _first(tags: Any, tag: int) -> int | None:
    """The first value of a tag; None if it is missing or not an integer."""
    value = tags.get(tag)
    if isinstance(value, tuple):
        value = value[0] if value else None
    return value if isinstance(value, int) else None
