"""Reads the quality that a JPEG was written with from its quantization tables.

libjpeg scales the tables of ITU-T T.81, annex K.1, by a percentage that depends on the quality (jcparam.c:
jpeg_quality_scaling, jpeg_add_quant_table), so the table for the brightness reveals it exactly. For encoders with
their own tables, such as Photoshop's, the result is the quality with the nearest table.
"""

import struct
from functools import cache

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]
"""64 divisors, in the zigzag order of files."""

_DQT, _SOS = 0xDB, 0xDA
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_MAX_SEGMENTS = 1_000
"""Maximum number of segments read before the first scan. Real pictures have about ten."""

_BRIGHTNESS = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
"""T.81, table K.1."""


def jpeg_quality(body: bytes) -> int | None:
    """The quality of a JPEG on libjpeg's scale, 1 to 100; None for other files, and for JPEGs without a table.

    Exact for libjpeg's own tables, otherwise the quality with the nearest table.
    """
    table = _brightness_table(body)
    if table is None:
        return None
    distances = np.abs(np.log(_tables()) - np.log(np.maximum(table, 1))).mean(axis=1)  # [100]
    return int(np.argmin(distances)) + 1


@cache
def _tables() -> Table:
    """libjpeg's tables for the qualities 1 to 100: [100, 64]."""
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)  # percent
    zigzag = sorted(range(64), key=lambda at: (sum(divmod(at, 8)), (at // 8) if sum(divmod(at, 8)) % 2 else at % 8))
    return ((_BRIGHTNESS.flatten()[zigzag] * scale + 50) // 100).clip(1, 255).astype(np.float64)


def _brightness_table(body: bytes) -> Table | None:
    """The first component's table that is in force at the first scan."""
    if not body.startswith(b"\xff\xd8\xff"):
        return None
    tables: dict[int, Table] = {}
    number, offset = None, 2
    try:
        for _ in range(_MAX_SEGMENTS):
            start, marker, length = struct.unpack_from(">BBH", body, offset)
            if start != 0xFF or marker == _SOS:
                break
            if marker == 0xFF:  # fill bytes in front of a marker
                offset += 1
                continue
            segment = body[offset + 4 : offset + 2 + length]
            if marker == _DQT:
                tables.update(_read_tables(segment))
            elif marker in _FRAMES:
                number = segment[8]
            offset += 2 + length
    except (struct.error, IndexError):  # the decoder reports what is wrong with the file
        return None
    return None if number is None else tables.get(number)


def _read_tables(segment: bytes) -> dict[int, Table]:
    """The tables in one segment (T.81, B.2.4.1), with 8 or 16 bits per divisor. Raises struct.error if it is too
    short."""
    found, at = {}, 0
    while at < len(segment):
        form = ">64H" if segment[at] >> 4 else ">64B"
        found[segment[at] & 15] = np.array(struct.unpack_from(form, segment, at + 1), np.float64)
        at += 1 + struct.calcsize(form)
    return found
