"""Reads the page headers of a Parquet column chunk: what each page contains, and its uncompressed size."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

DATA, DICTIONARY, DATA_V2 = 0, 2, 3
"""Kinds of pages."""

_HEADER_BYTES = (4_096, 1 << 16, 1 << 20, 16 << 20)
"""Numbers of bytes to read, tried in this order. Only headers with long statistics exceed 100 bytes. Arrow reads up to
16 MiB."""
_MAX_PAGES = 1 << 20
_MAX_FIELDS, _MAX_DEPTH = 100, 4
_DATA_HEADER, _DICTIONARY_HEADER, _DATA_V2_HEADER = 5, 7, 8
_HEADER_OF = {DATA: _DATA_HEADER, DICTIONARY: _DICTIONARY_HEADER, DATA_V2: _DATA_V2_HEADER}

Struct: TypeAlias = dict[int, Any]
"""A Thrift struct: field number -> value."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page with values or a dictionary (https://parquet.apache.org/docs/file-format/data-pages)."""

    kind: int
    position: int
    """Position of the first byte after its header."""
    packed_bytes: int
    num_bytes: int
    """Uncompressed."""
    num_values: int
    """Including nulls."""
    encoding: int
    level_bytes: tuple[int, int] | None = None
    """DATA_V2: bytes of the repetition and the definition levels, which come first and are not compressed."""
    is_packed: bool = True
    """DATA_V2: whether the values after the levels are compressed."""

    @property
    def is_data(self) -> bool:
        """Whether it is a data page rather than a dictionary."""
        return self.kind != DICTIONARY


def pages_of(file: IO[bytes], chunk: Any) -> Iterator[Page]:
    """The pages of a column chunk, in order. Like readers, stops when the pages have as many values as the footer
    says. Raises ValueError if the headers cannot be read."""
    starts = [chunk.data_page_offset, chunk.dictionary_page_offset]
    position = min(start for start in starts if start)
    end = position + chunk.total_compressed_size
    num_values = 0
    for _ in range(_MAX_PAGES):
        if position >= end or num_values >= chunk.num_values:
            return
        header, length = _header(file, position)
        position += length
        kind, num_bytes, packed_bytes = (header.get(number) for number in (1, 2, 3))
        if kind is None or num_bytes is None or packed_bytes is None or min(num_bytes, packed_bytes) < 0:
            raise ValueError("a page header without sizes")
        of_kind = header.get(_HEADER_OF.get(kind, 0))
        if of_kind is not None:
            is_v2 = kind == DATA_V2
            values, encoding = of_kind.get(1, 0), of_kind.get(4 if is_v2 else 2, 0)
            levels = (of_kind.get(6, 0), of_kind.get(5, 0)) if is_v2 else None
            is_packed = of_kind.get(7, True)
            yield Page(kind, position, packed_bytes, num_bytes, values, encoding, levels, is_packed)
            num_values += values if kind != DICTIONARY else 0
        position += packed_bytes
    raise ValueError("too many pages")


def _header(file: IO[bytes], position: int) -> tuple[Struct, int]:
    for num_bytes in _HEADER_BYTES:
        file.seek(position)
        data = file.read(num_bytes)
        try:
            return _struct(data, 0)
        except IndexError:  # the header is longer
            if len(data) < num_bytes:
                break
    raise ValueError("a page header that does not end")


def _struct(data: bytes, position: int, depth: int = 0) -> tuple[Struct, int]:
    """A struct in Thrift's compact protocol, and the position after it. Knows only the types that page headers use.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """
    fields: Struct = {}
    number = 0
    for _ in range(_MAX_FIELDS):
        head = data[position]
        position += 1
        if head == 0:
            return fields, position
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, position = _integer(data, position)
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind == 3:
            fields[number], position = data[position], position + 1
        elif kind in (4, 5, 6):
            fields[number], position = _integer(data, position)
        elif kind == 8:
            length, position = varint(data, position)
            position += length
        elif kind == 12 and depth < _MAX_DEPTH:
            fields[number], position = _struct(data, position, depth + 1)
        else:
            break
    raise ValueError("not a page header")


def _integer(data: bytes, position: int) -> tuple[int, int]:
    """A zigzag varint."""
    value, position = varint(data, position)
    return (value >> 1) ^ -(value & 1), position


def varint(data: bytes, position: int) -> tuple[int, int]:
    """An unsigned LEB128 integer, and the position after it. Raises IndexError if the data ends too soon, and
    ValueError if the integer has more than 70 bits."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("an integer of more than 70 bits")
