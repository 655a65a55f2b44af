"""Reads the size of the AV1 frames in an AVIF. The container may understate it, but a decoder allocates
the size that the AV1 data specifies.

Sources: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (items), section 5.5 of the AV1 specification.
"""

import struct
from collections.abc import Iterator

_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl"})
_SEQUENCE_HEADER, _TEMPORAL_DELIMITER = 1, 2
_MAX_FRAMES = 1_000
_SEARCHED_BYTES = 64


def coded_pixels(body: bytes) -> int:
    """The total pixels of all AV1 items (the picture or its tiles, and its alpha) and of a sequence's first frame; 0 if
    none is found. Never raises."""
    total = 0
    try:
        for number, offset in enumerate(_frame_offsets(body, 0, len(body))):
            if number == _MAX_FRAMES:
                break
            total += _sequence_pixels(body[offset : offset + _SEARCHED_BYTES])
    except (struct.error, IndexError, RecursionError):
        pass
    return total


def _boxes(body: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start of the content, end) of each box."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", body, start)
        content = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", body, content)
            content += 8
        stop = end if size == 0 else start + size
        if stop < content:
            return
        yield kind, content, min(stop, end)
        start = stop


def _frame_offsets(body: bytes, start: int, end: int) -> Iterator[int]:
    """The offsets at which the data of items and the chunks of tracks begin."""
    idat = 0
    for kind, content, stop in _boxes(body, start, end):
        if kind == b"meta":
            idat = next((inner for name, inner, _ in _boxes(body, content + 4, stop) if name == b"idat"), 0)
            for name, inner, _ in _boxes(body, content + 4, stop):
                if name == b"iloc":
                    yield from _item_offsets(body, inner, idat)
        elif kind in _CONTAINERS:
            yield from _frame_offsets(body, content, stop)
        elif kind in (b"stco", b"co64"):
            yield struct.unpack_from(">I" if kind == b"stco" else ">Q", body, content + 8)[0]


def _item_offsets(body: bytes, at: int, idat: int) -> Iterator[int]:
    """The offset of the first extent of each item (ISO/IEC 14496-12, 8.11.3)."""
    version, sizes = body[at], struct.unpack_from(">H", body, at + 4)[0]
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version in (1, 2) else 0
    count_size = 4 if version == 2 else 2
    at += 6
    count, at = _integer(body, at, count_size)
    for _ in range(count):
        at += count_size
        method = 0
        if version in (1, 2):
            method, at = _integer(body, at, 2)
        base, at = _integer(body, at + 2, base_size)
        extents, at = _integer(body, at, 2)
        if at > len(body):
            return
        if extents:
            offset, _ = _integer(body, at + index_size, offset_size)
            yield base + offset + (idat if method & 15 == 1 else 0)
        at += extents * (index_size + offset_size + length_size)


def _integer(body: bytes, at: int, size: int) -> tuple[int, int]:
    return int.from_bytes(body[at : at + size], "big"), at + size


def _sequence_pixels(data: bytes) -> int:
    """The pixels of the largest frame, from the sequence header at the start of these open bitstream units; 0 if it is
    missing."""
    at = 0
    while at < len(data):
        kind, has_extension, has_size = data[at] >> 3 & 15, data[at] & 4, data[at] & 2
        if data[at] & 0x81 or kind not in (_SEQUENCE_HEADER, _TEMPORAL_DELIMITER):
            return 0
        at += 2 if has_extension else 1
        size, shift = 0, 0
        while has_size:  # LEB128
            size |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if not data[at - 1] & 128:
                break
        if kind == _SEQUENCE_HEADER:
            return _frame_pixels(_Bits(data[at:]))
        at += size
    return 0


class _Bits:
    """Reads unsigned integers, most significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        if count > self._left:
            raise IndexError("cut off")
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)


def _frame_pixels(bits: _Bits) -> int:
    """Read sequence_header_obu() up to the frame size."""
    bits.read(3 + 1)  # profile, still picture
    if bits.read(1):  # a reduced header
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing
        bits.read(64)
        if bits.read(1):  # equal intervals; their length is coded with leading zeros
            zeros = 0
            while not bits.read(1):
                zeros += 1
            bits.read(zeros)
        if bits.read(1):  # a decoder model
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5 + 5)
    has_display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_display_delay and bits.read(1):
            bits.read(4)
