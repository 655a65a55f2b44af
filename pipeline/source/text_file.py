"""Reads a text file, plain or .gz and in any encoding, as a stream of lines in UTF-8.

A file is UTF-8 unless its byte order mark or `source.encoding` says otherwise. The mark has priority, as in browsers
(https://encoding.spec.whatwg.org/#decode). UTF-16 and UTF-32 without a mark are little-endian. Lines
that are not UTF-8 are passed on unchanged, so that each affects only its own row. A file is refused if most of its
non-ASCII lines are not UTF-8.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.web_files import is_named_gz
from pairmill.pipeline.source.content_kind import GZIP_MAGIC, HEAD_BYTES, kind_of_content
from pairmill.pipeline.source.files import SourceError

MAX_RECORD_BYTES = 16 << 20

_BUFFER_BYTES = 1 << 20
_BYTE_ORDER_MARKS = (  # UTF-32 first, because its mark starts with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LITTLE_ENDIAN: dict[str | None, str] = {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}
"""Python's own decoders for these names raise an error if there is no mark."""
_FEW_LINES = 3
"""A file with at most this many lines is refused if a single line is not UTF-8."""
_BROKEN_SHARE = 1_000
"""One line in this many may be broken in a file that is otherwise ASCII."""
_MANY_LINES = 10_000
"""Each time this many more lines are broken, check whether to refuse the file without reading the rest."""

Split = Callable[[io.BufferedReader], Iterator[bytes]]
"""Splits a file into pieces, each with one record or a part of one."""


def split_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines with their line ends, truncated as in `lines_of`."""
    while line := file.readline(MAX_RECORD_BYTES + 1):
        yield line
        if len(line) > MAX_RECORD_BYTES:
            _skip_line(file)


def split_any_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Like `split_lines`, but a bare carriage return ends a line too, as in pandas and spreadsheets on old Macs."""
    rest = b""  # the start of a line whose end has not been read yet
    is_skipped = False  # whether the start of that line was yielded, truncated
    while block := file.read(_BUFFER_BYTES):
        lines = (rest + block).splitlines(keepends=True)
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()  # after a carriage return, a line feed may follow
        for line in lines:
            if not is_skipped:
                yield line[: MAX_RECORD_BYTES + 1]
            is_skipped = False
        if len(rest) > MAX_RECORD_BYTES:
            if not is_skipped:
                yield rest[: MAX_RECORD_BYTES + 1]
            rest, is_skipped = rest[-1:] if rest.endswith(b"\r") else b" ", True
    if rest and not is_skipped:
        yield rest


def _skip_line(file: IO[bytes]) -> None:
    while (rest := file.readline(_BUFFER_BYTES)) and not rest.endswith(b"\n"):
        pass


@contextmanager
def lines_of(
    uri: str, files: Files, encoding: str | None = None, split: Split = split_lines
) -> Iterator[Iterator[bytes]]:
    """Lines of a file, which may be a .gz, in UTF-8, with line ends and without the byte order mark.

    `encoding`: name of a codec; None for UTF-8. `split` may split the file elsewhere than at line ends. Lines are
    truncated to MAX_RECORD_BYTES + 1 bytes. Bytes that are invalid in the encoding become 0xFF, which is never valid
    UTF-8. Raises SourceError for a .gz that ends early and, if `encoding` is None, for a file that is not UTF-8.
    """
    with _open_decompressed(uri, files) as file:
        head = _first_bytes(file)
        mark, marked = _byte_order_mark(head)
        plain, encoding = _Rejoined(head.removeprefix(mark), file), marked or _LITTLE_ENDIAN.get(encoding, encoding)
        raw: Any = plain if encoding in (None, "utf-8") else _AsUtf8(plain, encoding)
        with io.BufferedReader(raw, _BUFFER_BYTES) as buffered:
            lines = split(buffered)
            yield lines if encoding else _check_encoding(uri, lines)


def marked_encoding(uri: str, files: Files) -> str | None:
    """The encoding that the file's byte order mark indicates; None without a mark."""
    with _open_decompressed(uri, files) as file:
        return _byte_order_mark(_first_bytes(file))[1]


@contextmanager
def _open_decompressed(uri: str, files: Files) -> Iterator[Any]:
    try:
        with files.open_stream(uri) as file:
            head = _first_bytes(file)
            whole = _Rejoined(head, file)
            is_packed = head.startswith(GZIP_MAGIC)
            if not is_packed:
                _refuse_other_kinds(f"{uri}:", head)
            if is_packed or is_named_gz(uri):
                unpacked: Any = gzip.GzipFile(fileobj=whole)
                head = _first_bytes(unpacked)
                _refuse_other_kinds(f"{uri}: its content", head)
                whole = _Rejoined(head, unpacked)
            yield whole
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"{uri}: cannot be fully decompressed (half-written or damaged?): {error}") from error


def _refuse_other_kinds(name: str, head: bytes) -> None:
    """Raise SourceError for content that is not text. The message says what to do."""
    if (found := kind_of_content(head)) is not None:
        raise SourceError(f"{name} {'; '.join(found)}")


def _first_bytes(file: IO[bytes]) -> bytes:
    """The bytes that tell the kind of a file, or the whole file if it is shorter."""
    head = b""
    while len(head) < HEAD_BYTES and (more := file.read(HEAD_BYTES - len(head))):
        head += more
    return head


def _byte_order_mark(head: bytes) -> tuple[bytes, str | None]:
    """(byte order mark, its encoding), from a file's first bytes."""
    return next(((mark, name) for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), (b"", None))


def _check_encoding(uri: str, lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines unchanged. Raises SourceError, at the latest at the end, if the file is in another encoding.

    Non-ASCII lines in Latin-1 and the like are hardly ever valid UTF-8. In a UTF-8 file with a few broken lines, most
    non-ASCII lines are valid.
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
            "source.encoding to latin-1, cp1252, utf-16 or the like; with utf-8, only those rows are refused"
        )


def _is_utf8_file(num_lines: int, valid: int, invalid: int) -> bool:
    """Decide from the numbers of non-ASCII lines that are and are not valid UTF-8."""
    is_isolated = invalid * _BROKEN_SHARE < num_lines or (invalid == 1 and num_lines > _FEW_LINES)
    return invalid <= valid or is_isolated


def _is_utf8(line: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Rejoined(io.RawIOBase):
    """A file whose first bytes were already read: yields these, then the rest. Needed because not every file read over
    HTTP can be rewound."""

    def __init__(self, head: bytes, file: Any) -> None:
        self._head = head
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            return int(self._file.readinto(buffer))
        count = min(len(buffer), len(self._head))
        buffer[:count], self._head = self._head[:count], self._head[count:]
        return count


class _AsUtf8(io.RawIOBase):
    """Reads a file in another encoding as UTF-8, with 0xFF in place of invalid bytes."""

    def __init__(self, file: io.RawIOBase, encoding: str) -> None:
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
    """Codec error handler: decodes invalid bytes to U+DCFF, which is not a character, and encodes that as 0xFF."""
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    assert isinstance(error, UnicodeEncodeError)
    return b"\xff", error.end


_MARK_INVALID = "pairmill-mark-invalid"
codecs.register_error(_MARK_INVALID, _mark_invalid)
