"""Parses the header of a tar member: only the fields that are needed, because others are often odd.

`tarfile` refuses a member if its owner or time is not a number, and takes an old file for a folder if the first 100
bytes of its name end in a slash (cpython#141707). Formats: as in `tar_members`.
"""

import re
import tarfile
from dataclasses import dataclass

BLOCK = tarfile.BLOCKSIZE
_CHECKSUM = slice(148, 156)
_OCTAL = re.compile(rb"\0? *([0-7]*)(?:[ \0].*)?", re.DOTALL)
"""Other bytes can follow, as in GNU tar, which also accepts a zero byte in place of a digit that did not fit."""
_GNU_MAGIC, _GNU_MAGIC_AT = b"ustar  \0", slice(257, 265)
_GNU_TIME, _GNU_TIME_AT = re.compile(rb"[0-7]{11}\0|[\x80\xff].{11}", re.DOTALL), slice(345, 357)
"""Octal digits, or a binary number for times before 1970 or in the distant future. Other programs store part of the
name in these bytes."""
_WITHOUT_PREFIX = frozenset({tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE})


class HeaderError(Exception):
    """A block is not a header."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says about its member, unless a header before it says otherwise."""

    name: str
    type: bytes
    size: int
    link: str


def parse_header(block: bytes) -> Header | None:
    """Parse a block; None if it contains only zeros. Raises HeaderError."""
    if len(block) != BLOCK:
        raise HeaderError("truncated header")
    if block.count(0) == BLOCK:
        return None
    others = block[: _CHECKSUM.start] + b" " * 8 + block[_CHECKSUM.stop :]
    sums = sum(others), sum(memoryview(others).cast("b"))  # old programs add signed bytes
    if _number(block[_CHECKSUM]) not in sums:
        raise HeaderError("bad checksum")
    name, kind = _text(block[:100]), block[156:157]
    prefix = _text(block[345:500]) if _has_prefix(block, kind) else ""
    return Header(f"{prefix}/{name}" if prefix else name, kind, _number(block[124:136]), _text(block[157:257]))


def _has_prefix(block: bytes, kind: bytes) -> bool:
    """Whether the header can contain the first part of the name (POSIX.1-1988).

    Where that part would be, `tar --listed-incremental` writes the access and change times in GNU's format
    (https://www.gnu.org/software/tar/manual/html_node/Standard.html: `struct oldgnu_header`), and V7 has nothing.
    """
    has_times = block[_GNU_MAGIC_AT] == _GNU_MAGIC and _GNU_TIME.fullmatch(block[_GNU_TIME_AT])
    return block[257:262] == b"ustar" and not has_times and kind not in _WITHOUT_PREFIX


def _number(field: bytes) -> int:
    """A number in octal digits or, if it is too large for them, in binary (GNU). Raises HeaderError."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big", signed=field[0] == 0xFF)
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise HeaderError("invalid header")
    return int(match[1] or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
