"""Drops the tables that no scan of a JPEG uses, since they can contain anything: a comment, a location, a thumbnail.

Source: ITU-T T.81, B.2.4 (tables), B.2.3 (scan header), G.1 (which tables progressive scans use).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

_DQT, _DHT, _SOS, _SOF2 = 0xDB, 0xC4, 0xDA, 0xC2
_HEADER_BYTES = 4  # marker and length
_HUFFMAN = 32  # keeps the numbers of Huffman tables, up to 31, apart from those of quantization tables

_Key = tuple[int, int]
"""(marker, number of the table); the number of a Huffman table for AC coefficients has 16 added."""


@dataclass(slots=True)
class _Table:
    data: bytes
    is_used: bool = False


@dataclass(slots=True)
class _Usage:
    """The tables that are in force while a file is read."""

    current: dict[_Key, _Table] = field(default_factory=dict)
    quantization: dict[int, int] = field(default_factory=dict)
    """Component -> number of its table, until its first scan."""
    is_progressive: bool = False

    def begin_frame(self, marker: int, header: bytes) -> None:
        """Read a frame header."""
        self.is_progressive = marker == _SOF2
        self.quantization = {header[at]: header[at + 2] for at in range(10, 10 + 3 * header[9], 3)}

    def begin_scan(self, header: bytes) -> None:
        """Mark the tables that a scan uses."""
        count = header[4]
        first, _, approximation = header[5 + 2 * count : 8 + 2 * count]
        for component, tables in zip(header[5 : 5 + 2 * count : 2], header[6 : 6 + 2 * count : 2], strict=True):
            if (number := self.quantization.pop(component, None)) is not None:
                self._use(_DQT, number)
            if not self.is_progressive or (first == 0 and approximation >> 4 == 0):
                self._use(_DHT, tables >> 4)
            if not self.is_progressive or first > 0:
                self._use(_DHT, 16 | tables & 15)

    def _use(self, marker: int, number: int) -> None:
        if (table := self.current.get((marker, number))) is None:
            raise ValueError("a scan without its tables, which some decoders cannot read")
        table.is_used = True


def without_unused_tables(parts: Iterable[tuple[int, bytes]], frames: frozenset[int]) -> list[bytes]:
    """The parts of a JPEG, as (marker, bytes), without the tables that no scan uses.

    `frames`: markers of frame headers. Raises ValueError or IndexError for tables and headers that are too short, and
    for missing tables.
    """
    parts = list(parts)
    if _uses_all(parts, frames):
        return [part for _, part in parts]
    usage = _Usage()
    kept: list[bytes | tuple[bytes, list[_Table]]] = []
    for marker, part in parts:
        if marker in (_DQT, _DHT):
            tables = list(_tables(marker, part))
            usage.current.update(tables)
            kept.append((part, [table for _, table in tables]))
            continue
        if marker in frames:
            usage.begin_frame(marker, part)
        elif marker == _SOS and part.startswith(b"\xff\xda"):  # the header, not the bytes after it
            usage.begin_scan(part)
        kept.append(part)
    return [part if isinstance(part, bytes) else _used(*part) for part in kept]


def _uses_all(parts: Sequence[tuple[int, bytes]], frames: frozenset[int]) -> bool:
    """Whether a JPEG with one scan, like nearly all, uses each of its tables. Faster than the general case.

    Also False if a table follows the scan, or if the scan lacks components of the frame.
    """
    defined: list[int] = []
    used: set[int] = set()
    components = scanned = 0
    for marker, part in parts:
        if marker in (_DQT, _DHT):
            if scanned:
                return False
            defined += _numbers(marker, part)
        elif marker == _SOS and part.startswith(b"\xff\xda"):
            if scanned:
                return False
            scanned = part[4]
            for tables in part[6 : 6 + 2 * scanned : 2]:
                used |= {_HUFFMAN | tables >> 4, _HUFFMAN | 16 | tables & 15}
        elif marker in frames:
            if marker == _SOF2:
                return False
            components = part[9]
            used.update(part[12 : 12 + 3 * components : 3])
    return scanned == components and len(defined) == len(used) and used == set(defined)


def _numbers(marker: int, segment: bytes) -> Iterator[int]:
    """The numbers of a segment's tables, as coded in the file; those of Huffman tables have _HUFFMAN added."""
    at = _HEADER_BYTES
    while at < len(segment):
        if marker == _DQT:
            yield segment[at] & 15
            at += 129 if segment[at] >> 4 else 65
        else:
            yield _HUFFMAN | segment[at]
            at += 17 + sum(segment[at + 1 : at + 17])
    if at != len(segment):
        raise ValueError("a table that is too short")


def _tables(marker: int, segment: bytes) -> Iterator[tuple[_Key, _Table]]:
    at = _HEADER_BYTES
    while at < len(segment):
        if marker == _DQT:
            number, size = segment[at] & 15, 129 if segment[at] >> 4 else 65
        else:
            number, size = segment[at], 17 + sum(segment[at + 1 : at + 17])
        data = segment[at : at + size]
        if len(data) < size:
            raise ValueError("a table that is too short")
        yield (marker, number), _Table(data)
        at += size


def _used(segment: bytes, tables: list[_Table]) -> bytes:
    """The segment with only its used tables; empty if none is used."""
    if all(table.is_used for table in tables):
        return segment if tables else b""
    data = b"".join(table.data for table in tables if table.is_used)
    return segment[:2] + (2 + len(data)).to_bytes(2, "big") + data if data else b""
