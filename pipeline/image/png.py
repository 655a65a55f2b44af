"""Separates a PNG's metadata from its pixels, so that Pillow gets only the pixels.

Pillow rejects a whole picture because of one ancillary chunk that is too large, broken, or has a wrong checksum;
browsers (libpng) drop the chunk. Source: PNG specification, third edition (https://www.w3.org/TR/png-3/), sections 5
and 11.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

_SIGNATURE_BYTES = 8
_CHUNK_OVERHEAD = 12  # length, type, checksum
_IHDR_END = _SIGNATURE_BYTES + _CHUNK_OVERHEAD + 13
_IEND = b"\x00\x00\x00\x00IEND\xaeB`\x82"

MAX_CHUNKS = 100_000
"""Encoders write chunks of 8 kB or more; a file within `fetch.max_bytes` has a few thousand."""

_MAX_METADATA_BYTES = 2 << 20
"""Profiles and XMP that unpack to more are ignored."""

_GRAY, _RGB, _PALETTE = 0, 2, 3  # color types
_ANCILLARY = 0x20  # in the first byte of a chunk's type: the pixels can be understood without the chunk (section 5.4)

Info = dict[str, bytes | str | int | tuple[int, ...]]
"""Metadata under Pillow's names. Only the first chunk of each kind counts, even if it is broken (then its value is
empty): a file can have 100,000 chunks that each unpack to megabytes."""


@dataclass(slots=True)
class PngFile:
    """The parts of a PNG. `pixels` is a PNG file without metadata, as complete as the original.

    `fault` says why libpng, and with it all browsers, refuse the file's critical chunks; None if they do not. Pillow
    guesses instead: without a palette, black; of two headers or palettes, the second."""

    bit_depth: int = 0
    color_type: int = 0
    interlaced: bool = False
    num_chunks: int = 0
    key: tuple[int, ...] | None = None
    """The transparent color (one value, or red, green, blue) at the file's own depth; None in a palette."""
    info: Info = field(default_factory=dict)
    pixels: bytes = b""
    fault: str | None = None

    @property
    def is_gray(self) -> bool:
        """Whether the color space of the pixels is grayscale, with or without alpha."""
        return self.color_type in (0, 4)


def read_png(body: bytes) -> PngFile:
    """Split a PNG into parts; never raises. If the file is truncated, no decoder accepts `pixels`."""
    png = PngFile()
    header = body[_SIGNATURE_BYTES:_IHDR_END]
    if len(header) < _CHUNK_OVERHEAD + 13 or header[4:8] != b"IHDR":
        png.fault = "unreadable PNG header"
        return png
    png.bit_depth, png.color_type, png.interlaced = header[16], header[17], header[20] != 0
    png.pixels = b"".join(_pixel_parts(body, png))
    return png


def _pixel_parts(body: bytes, png: PngFile) -> Iterator[memoryview | bytes]:
    view = memoryview(body)
    yield view[:_IHDR_END]
    palette_colors = 0
    is_before_pixels = True
    critical = []
    for kind, start, end in _chunks(body, png):
        if not kind[0] & _ANCILLARY:
            critical.append((kind, end - start))
        if kind == b"IDAT":
            is_before_pixels = False
            yield view[start - 8 : end + 4]
            if end + 4 > len(body):
                return  # truncated: do not invent an end
        elif kind == b"PLTE" and is_before_pixels and not palette_colors:
            palette_colors = (end - start) // 3
            if png.color_type == _PALETTE:  # otherwise, a hint for displays with few colors
                yield view[start - 8 : end + 4]
        elif kind[0] & _ANCILLARY and _is_intact(view, start, end):
            if kind == b"tRNS" and is_before_pixels and png.key is None:
                if png.color_type == _PALETTE and 0 < end - start <= palette_colors:
                    png.info.setdefault("transparency", bytes(view[start:end]))
                png.key = _key_color(body[start:end], png)
            elif kind == b"iCCP" and (palette_colors or not is_before_pixels):
                continue  # out of place: ignored by libpng too
            elif kind in _METADATA:
                _METADATA[kind](body[start:end], png.info)
    png.fault = _critical_fault(critical, png.color_type)
    yield _IEND


def _critical_fault(chunks: list[tuple[bytes, int]], color_type: int) -> str | None:
    """`PngFile.fault`, from the (type, length) of all critical chunks between IHDR and IEND."""
    kinds = [kind for kind, _ in chunks]
    for kind in kinds:
        if kind not in (b"IDAT", b"PLTE"):
            return "two headers" if kind == b"IHDR" else f"unknown critical chunk {kind.decode()}"
    if color_type != _PALETTE:
        return None
    palettes = [length for kind, length in chunks if kind == b"PLTE"]
    if len(palettes) > 1:
        return "two palettes"
    if kinds[:1] != [b"PLTE"] or not 0 < palettes[0] <= 3 * 256 or palettes[0] % 3:
        return "no valid palette before the pixels"
    return None


def _chunks(body: bytes, png: PngFile) -> Iterator[tuple[bytes, int, int]]:
    """(type, start of data, end of data) of each chunk after IHDR. The last chunk can end beyond the file."""
    offset = _IHDR_END
    while offset + 8 <= len(body) and png.num_chunks <= MAX_CHUNKS:
        length = int.from_bytes(body[offset : offset + 4], "big")
        kind = body[offset + 4 : offset + 8]
        if kind == b"IEND" or not kind.isalpha():
            return
        png.num_chunks += 1
        yield kind, offset + 8, offset + 8 + length
        offset += _CHUNK_OVERHEAD + length


def _is_intact(view: memoryview, start: int, end: int) -> bool:
    return end + 4 <= len(view) and zlib.crc32(view[start - 4 : end]) == int.from_bytes(view[end : end + 4], "big")


def _key_color(data: bytes, png: PngFile) -> tuple[int, ...] | None:
    """The color in the tRNS chunk of a grayscale or RGB picture: each value has 16 bits, but only
    its lowest bits count, as many as the bit depth (section 11.3.1.1)."""
    channels = {_GRAY: 1, _RGB: 3}.get(png.color_type)
    if channels is None or len(data) != 2 * channels:
        return None
    mask = (1 << png.bit_depth) - 1
    return tuple(int.from_bytes(data[at : at + 2], "big") & mask for at in range(0, len(data), 2))


def _profile(data: bytes, info: Info) -> None:
    _, _, compressed = data.partition(b"\0")  # the name
    if "icc_profile" not in info:
        info["icc_profile"] = _unzip(compressed[1:]) if compressed[:1] == b"\0" else b""


def _exif(data: bytes, info: Info) -> None:
    info.setdefault("exif", b"Exif\0\0" + data)


def _text(data: bytes, info: Info) -> None:
    keyword, _, value = data.partition(b"\0")
    if keyword == b"Raw profile type exif" and len(value) <= _MAX_METADATA_BYTES:
        info.setdefault("Raw profile type exif", value.decode("latin-1"))


def _compressed_text(data: bytes, info: Info) -> None:
    keyword, _, value = data.partition(b"\0")
    if keyword == b"Raw profile type exif" and value[:1] == b"\0" and keyword.decode() not in info:
        _text(keyword + b"\0" + _unzip(value[1:]), info)


_ITXT = re.compile(rb"XML:com\.adobe\.xmp\0([\0\1])\0[^\0]*\0[^\0]*\0", re.DOTALL)


def _international_text(data: bytes, info: Info) -> None:
    if "xmp" in info or (found := _ITXT.match(data)) is None:
        return
    text = data[found.end() :]
    info["xmp"] = _unzip(text) if found[1] == b"\1" else text[:_MAX_METADATA_BYTES]


def _unzip(compressed: bytes) -> bytes:
    """Decompressed zlib data; empty if it is broken or too large."""
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(compressed, _MAX_METADATA_BYTES)
    except zlib.error:
        return b""
    return data if unpacker.eof else b""


_METADATA = {
    b"iCCP": _profile,
    b"eXIf": _exif,
    b"tEXt": _text,
    b"zTXt": _compressed_text,
    b"iTXt": _international_text,
}
