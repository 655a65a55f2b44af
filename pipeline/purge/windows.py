"""Reads a file of any size as overlapping windows of text, so that a search needs little memory and misses nothing at
the cuts."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol, cast

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 512
"""Number of bytes at the beginning of a file that identify its format."""
_STOPS = [bytes([byte]) for byte in b"\n\r\t \"'<>{}|^`\0"]
"""Bytes that no URL, host or number contains. All are ASCII, so a cut there splits no UTF-8 character."""
_CONTROLS = bytes({*range(32), 127} - set(b"\0\t\n\v\f\r\x1b"))
"""Bytes that binary files contain and text does not. Some text contains zeros, as separators, and escape sequences."""


class Reads(Protocol):
    """Something to read bytes from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size`; empty at the end."""


class Part:
    """A range of a file, to be read once."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        self._file, self._offset, self._at, self._end = file, offset, offset, offset + length

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size`; empty at the end."""
        self._file.seek(self._at)
        data = self._file.read(min(size, self._end - self._at))
        self._at += len(data)
        return data

    def again(self) -> "Part":
        """The same range, to be read once more."""
        return Part(self._file, self._offset, self._end - self._offset)

    def head(self) -> bytes:
        """The first bytes, which identify the format."""
        return self.again().read(HEAD_BYTES)


@dataclass(frozen=True)
class Window:
    """A part of a file's text. Each window except the first begins with the end of the previous one."""

    text: str
    num_bytes: int
    """Number of bytes; each byte of the file counts in only one window."""
    is_first: bool
    is_last: bool
    is_text: bool = True

    def inner(self, pieces: list[str]) -> list[str]:
        """The whole pieces among `pieces`, into which this window was split."""
        return pieces[0 if self.is_first else 1 : len(pieces) if self.is_last else -1]


def blocks(file: Reads) -> Iterator[bytes]:
    """The content, a few megabytes at a time."""
    while data := file.read(BLOCK_BYTES):
        yield data


def is_text(data: bytes) -> bool:
    """Whether data look like text in UTF-8 or Windows-1252: they contain hardly any control characters."""
    return len(data) - len(data.translate(None, _CONTROLS)) <= len(data) // 64


def wide_encoding(head: bytes) -> str | None:
    """UTF-16 with its byte order, if a file begins like this encoding: with its mark or, because every ASCII character
    contains a zero, with zeros at either even or odd positions."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16-le" if head.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > max(4 * min(even, odd), len(head) // 32) and is_text(head):
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def in_utf8(file: Reads, encoding: str) -> Reads:
    """The same text in UTF-8."""
    return codecs.EncodedFile(cast(IO[bytes], file), "utf-8", encoding, "replace")


def _decoded(data: bytes, is_text: bool) -> Iterator[str]:
    """The data as UTF-8 and, if it is text in another encoding, also as Windows-1252, which includes Latin-1."""
    data = data.removeprefix(codecs.BOM_UTF8)
    yield (text := data.decode("utf-8", "replace"))
    if is_text and "\ufffd" in text:
        yield data.decode("cp1252", "replace")


def windows(file: Reads, overlap: int, can_be_text: bool = True) -> Iterator[Window]:
    """The content as text, in windows that are cut between words, so that words of up to `overlap` bytes are whole.
    Lines and other pieces that are shorter than that are whole in at least one window. There are several windows of the
    same text if its encoding is unknown."""
    kept, is_first, size = b"", True, BLOCK_BYTES + overlap
    block = file.read(size)
    while True:
        following = file.read(size)
        data = kept + block
        end = _last_stop(data, len(data), overlap) if following else len(data)
        text_likely = can_be_text and is_text(data)
        for number, text in enumerate(_decoded(data[:end], text_likely)):
            yield Window(text, 0 if number else len(block), is_first, not following, text_likely)
        if not following:
            return
        kept, block, is_first = data[_last_stop(data, max(0, end - overlap), overlap) :], following, False


def _last_stop(data: bytes, end: int, overlap: int) -> int:
    """The position after the last stop within `overlap` bytes before `end`; `end` if there is none."""
    start = max(0, end - overlap)
    found = max(data.rfind(stop, start, end) for stop in _STOPS)
    return found + 1 if found >= 0 else end if start else 0
