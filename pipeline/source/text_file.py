"""A text file, plain or .gz and in any encoding -> lines of UTF-8, streaming.

A file is UTF-8 unless its byte order mark or `source.encoding` says otherwise; the mark wins, as it does in browsers
(https://encoding.spec.whatwg.org/#decode). Lines that are not UTF-8 go through as they are, so that each costs its own
row only; a file of which that is true for most lines beyond ASCII is refused.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.source.files import SourceError

MAX_RECORD_BYTES = 16 << 20

_BUFFER_BYTES = 1 << 20
_BYTE_ORDER_MARKS = (  # UTF-32 before UTF-16, whose mark its own begins with
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_FEW_LINES = 3
"""In a file this short, one line that is not UTF-8 is enough to refuse it."""
_BROKEN_SHARE = 1_000
"""One line in so many may be broken in a file that is ASCII otherwise."""
_MANY_LINES = 10_000
"""Every so many broken lines, the rest of the file is not waited for."""

Split = Callable[[io.BufferedReader], Iterator[bytes]]
"""Cuts a file into pieces that hold one record each, or a part of one."""


def split_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends, as `lines_of` describes them."""
    while line := file.readline(MAX_RECORD_BYTES + 1):
        yield line
        if len(line) > MAX_RECORD_BYTES:
            _skip_line(file)


def _skip_line(file: IO[bytes]) -> None:
    while (rest := file.readline(_BUFFER_BYTES)) and not rest.endswith(b"\n"):
        pass


@contextmanager
def lines_of(
    uri: str, files: Files, encoding: str | None = None, split: Split = split_lines
) -> Iterator[Iterator[bytes]]:
    """Lines of a file (also .gz) in UTF-8 with their ends, without the byte order mark.

    `encoding`: a codec's name; None for UTF-8. `split` may cut the file elsewhere than at the ends of lines. A line
    longer than MAX_RECORD_BYTES is cut to one byte more than that. Bytes that the encoding does not allow come out as
    0xFF, which is never UTF-8. Raises SourceError for a .gz that ends early and, where `encoding` is None, for a file
    that is not UTF-8.
    """
    with _decompressed(uri, files) as file:
        mark, marked = _byte_order_mark(file.read(4))
        file.seek(len(mark))
        encoding = marked or encoding
        raw = file if encoding in (None, "utf-8") else _AsUtf8(file, encoding)
        with io.BufferedReader(raw, _BUFFER_BYTES) as buffered:
            lines = split(buffered)
            yield lines if encoding else _checked(uri, lines)


def marked_encoding(uri: str, files: Files) -> str | None:
    """The encoding that the file's byte order mark says; None without one."""
    with _decompressed(uri, files) as file:
        return _byte_order_mark(file.read(4))[1]


@contextmanager
def _decompressed(uri: str, files: Files) -> Iterator[Any]:
    try:
        with files.open(uri) as file:
            yield gzip.GzipFile(fileobj=file) if uri.lower().endswith(".gz") else file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"{uri}: cannot be decompressed to its end (half-written or damaged?): {error}") from error


def _byte_order_mark(head: bytes) -> tuple[bytes, str | None]:
    """(the mark, the encoding that it says) of a file's first bytes."""
    return next(((mark, name) for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), (b"", None))


def _checked(uri: str, lines: Iterator[bytes]) -> Iterator[bytes]:
    """The same lines. Raises SourceError as soon as the file is surely in another encoding, at the latest at its end.

    Text in Latin-1 or the like is hardly ever valid UTF-8 where it leaves ASCII; UTF-8 with a few broken lines is
    valid UTF-8 in most of them.
    """
    number = valid = invalid = first_invalid = 0
    for number, line in enumerate(lines, start=1):
        if not line.isascii():
            if _is_utf8(line):
                valid += 1
            else:
                invalid += 1
                first_invalid = first_invalid or number
                if invalid % _MANY_LINES == 0 and not _is_utf8_file(number, valid, invalid):
                    break
        yield line
    if not _is_utf8_file(number, valid, invalid):
        raise SourceError(
            f"{uri}: is not UTF-8 (record {first_invalid} is the first of {invalid:,} that are not). Set "
            "source.encoding to what it is, such as latin-1, cp1252 or utf-16; with utf-8, only those rows are refused"
        )


def _is_utf8_file(num_lines: int, valid: int, invalid: int) -> bool:
    """By how many lines beyond ASCII are UTF-8, and how many are not."""
    is_isolated = invalid * _BROKEN_SHARE < num_lines or (invalid == 1 and num_lines > _FEW_LINES)
    return invalid <= valid or is_isolated


def _is_utf8(line: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


class _AsUtf8(io.RawIOBase):
    """A file in another encoding, read as UTF-8, with 0xFF in place of what is not in that encoding."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)(_MARK_INVALID)
        self._ready = memoryview(b"")
        self._at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._at_end:
            data = self._file.read(_BUFFER_BYTES)
            self._at_end = not data
            text = self._decoder.decode(data, final=self._at_end)
            self._ready = memoryview(text.encode("utf-8", _MARK_INVALID))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _mark_invalid(error: UnicodeError) -> tuple[str | bytes, int]:
    """A handler of codec errors: U+DCFF when decoding, which is no character, and for that 0xFF when encoding."""
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    assert isinstance(error, UnicodeEncodeError)
    return b"\xff", error.end


_MARK_INVALID = "pairmill-mark-invalid"
codecs.register_error(_MARK_INVALID, _mark_invalid)
