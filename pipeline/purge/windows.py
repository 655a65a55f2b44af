"""Reads a file of any size in parts of text, so that a search of it needs little memory and misses nothing at cuts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol

BLOCK_BYTES = 1 << 22
_STOPS = [bytes([byte]) for byte in b"\n\r\t \"'<>{}|^`\0"]
"""Bytes that no URL, host or digits contain. All are ASCII, so they cut no letter of UTF-8."""


class Reads(Protocol):
    """Something to read bytes from."""

    def read(self, size: int, /) -> bytes:
        """At most that many bytes; none at the end."""


class Part:
    """A range of a file, to be read once."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        self._file, self._at, self._end = file, offset, offset + length

    def read(self, size: int, /) -> bytes:
        """At most that many bytes; none at the end."""
        self._file.seek(self._at)
        data = self._file.read(min(size, self._end - self._at))
        self._at += len(data)
        return data


@dataclass(frozen=True)
class Window:
    """A part of a text. All but the first begin with the end of the one before."""

    text: str
    num_bytes: int
    """Bytes that no other window counts."""
    is_first: bool
    is_last: bool

    def inner(self, pieces: list[str]) -> list[str]:
        """The pieces that a split has left of this window, without those that a cut has shortened."""
        return pieces[0 if self.is_first else 1 : len(pieces) if self.is_last else -1]


def blocks(file: Reads) -> Iterator[bytes]:
    """The content, a few megabytes at a time."""
    while data := file.read(BLOCK_BYTES):
        yield data


def windows(file: Reads, overlap: int) -> Iterator[Window]:
    """The content as text, in windows that are cut where no word is, so that words of up to `overlap` bytes are whole.
    Lines and other pieces that are shorter, too, are whole in one of two."""
    kept, is_first, size = b"", True, BLOCK_BYTES + overlap
    block = file.read(size)
    while True:
        following = file.read(size)
        data = kept + block
        end = _last_stop(data, overlap) if following else len(data)
        yield Window(data[:end].decode("utf-8", "replace"), len(block), is_first, not following)
        if not following:
            return
        kept, block, is_first = data[_first_stop(data, max(0, end - overlap), end) :], following, False


def _last_stop(data: bytes, overlap: int) -> int:
    """The place behind the last stop, but not too far from the end."""
    found = max(data.rfind(stop, max(0, len(data) - overlap)) for stop in _STOPS)
    return found + 1 if found >= 0 else len(data)


def _first_stop(data: bytes, start: int, end: int) -> int:
    """The first stop from `start` on, or else `start`."""
    places = (data.find(stop, start, end) for stop in _STOPS)
    return min((place for place in places if place >= 0), default=start)
