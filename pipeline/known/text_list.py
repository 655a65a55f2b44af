"""Reads text lists: one value per line, in UTF-8. Blank lines and lines that start with # are only counted."""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from pairmill.pipeline.common.files import MAX_LINE_BYTES, Files
from pairmill.pipeline.known.keys import Keys
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.read_values import Position, Tally, list_keys
from pairmill.schemas.known import ValueKind

_BLOCK_BYTES = 1 << 22
_BOM = b"\xef\xbb\xbf"


def read_text_list(files: Files, path: str, kind: ValueKind, tally: Tally) -> Iterator[Keys]:
    """The keys of a text file's lines, in blocks. Raises KnownError, naming the line, for a value of the wrong kind."""
    first = 1
    with files.open_decompressed(path) as file:
        for lines in _blocks(path, file):
            if first == 1:
                lines[0] = lines[0].removeprefix(_BOM)
            yield _keys(path, first, lines, kind, tally)
            first += len(lines)


def _blocks(path: str, file: IO[bytes]) -> Iterator[list[bytes]]:
    """The lines, without line feeds, a block at a time. Raises KnownError for a line that is too long to be a value."""
    number, rest = 1, b""
    while data := file.read(_BLOCK_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        for at, line in enumerate((*lines, rest), number):
            if len(line) > MAX_LINE_BYTES:
                raise KnownError(f"{path}, line {at:,}: the line is longer than {MAX_LINE_BYTES:,} bytes")
        number += len(lines)
        if lines:
            yield lines
    if rest:
        yield [rest]


def _keys(path: str, first: int, lines: list[bytes], kind: ValueKind, tally: Tally) -> Keys:
    comments = 0
    for number, line in enumerate(lines):
        if line.startswith(b"#"):
            lines[number] = b""
            comments += 1
    if comments:
        tally.unused["comment"] += comments
        tally.unused[f"no {kind}"] -= comments  # `list_keys` will count the blanked lines here
    try:
        texts = pa.array(lines, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        number = next(number for number, line in enumerate(lines) if not _is_utf8(line))
        raise KnownError(f"{path}, line {first + number:,}: is not UTF-8") from None
    keys = list_keys(kind, texts, Position(path, "line", first), tally, must_be_urls=True)
    tally.unused = +tally.unused
    return keys


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
