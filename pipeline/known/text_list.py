"""Reads text lists: one value per line, in UTF-8. Blank lines and lines that start with # are counted, not used."""

from collections.abc import Iterator

import pyarrow as pa

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.known.keys import Keys
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.read_values import Position, Tally, list_keys
from pairmill.schemas.known import ValueKind

_BLOCK_BYTES = 1 << 22
_BOM = b"\xef\xbb\xbf"


def read_text_list(files: Files, path: str, kind: ValueKind, tally: Tally) -> Iterator[Keys]:
    """The keys of a text file's lines, in blocks. Raises KnownError, with the line, if one is no such value."""
    with files.open_decompressed(path) as file:
        first, lines = 1, file.readlines(_BLOCK_BYTES)
        if lines:
            lines[0] = lines[0].removeprefix(_BOM)
        while lines:
            yield _keys(path, first, lines, kind, tally)
            first, lines = first + len(lines), file.readlines(_BLOCK_BYTES)


def _keys(path: str, first: int, lines: list[bytes], kind: ValueKind, tally: Tally) -> Keys:
    comments = 0
    for number, line in enumerate(lines):
        if line.startswith(b"#"):
            lines[number] = b""
            comments += 1
    if comments:
        tally.unused["comment"] += comments
        tally.unused[f"no {kind}"] -= comments  # as which the blanked lines will be counted
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
