"""Parses the bytes of a connection, however they are split, into one HTTP/1 response (RFC 9112). Uses no sockets.

It accepts what curl and browsers accept: bare line feeds, folded lines, lines without a colon, repeated equal
Content-Lengths, Content-Length together with chunked, bytes after the end, and redirects without a blank line.
Everything except the body itself is bounded.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.schemas.status import Status

MAX_HEAD_BYTES = 300 << 10
"""Limit for all lines of a response: interim responses, fields, chunk extensions and trailers. As in curl; Chrome's is
256 KB."""

MAX_FIELDS = 1_000
MAX_INTERIM_RESPONSES = 100
MAX_SMALL_CHUNKS, SMALL_CHUNK_BYTES = 2_048, 64
"""Number of chunks allowed beyond one per 64 bytes: a body in one-byte chunks takes seconds of CPU time."""

_BLANK_LINES = 2  # before the status line; Chrome skips four bytes there
_STATUS_LINE = re.compile(rb"HTTP/(\d)(?:\.(\d))?[ \t]+(\d{3})(?!\d)", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})(?:[ \t;]|$)")
_LENGTH = re.compile(r"\+?(\d{1,4000})(?![\d.])", re.ASCII)  # curl ignores what follows
_MAX_LENGTH = 2**63 - 1  # curl ignores larger values
_WITHOUT_BODY = frozenset({101, 204, 304})  # RFC 9112 section 6.3


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The status line and the header fields of a final response."""

    version: tuple[int, int]
    status: int
    fields: list[tuple[str, str]]
    """Names in lower case. Bytes of values that are not UTF-8 are surrogates (PEP 383)."""

    def get(self, name: str) -> str | None:
        """The value of the first field with this name; curl follows the first Location, too."""
        return next((value for key, value in self.fields if key == name), None)

    def get_all(self, name: str) -> list[str]:
        """The values of all fields with this name."""
        return [value for key, value in self.fields if key == name]

    @property
    def codings(self) -> list[str]:
        """The content codings, then the transfer codings, in the order in which the server applied them."""
        return [*self.elements("content-encoding"), *self.elements("transfer-encoding")]

    def elements(self, name: str) -> list[str]:
        """The elements of this field's comma-separated lists, in lower case (RFC 9110 section 5.6.1)."""
        elements = (element.strip().lower() for value in self.get_all(name) for element in value.split(","))
        return [element for element in elements if element]


class ResponseParser:
    """Parses one response. `feed` returns the newly arrived part of the body.

    `feed` still returns the bytes before a violation of the protocol; `raise_failure` then raises the error.
    """

    def __init__(self) -> None:
        self.head: ResponseHead | None = None
        """None until the fields of the final response are complete."""
        self.complete = False
        self.has_surplus = False
        """Whether bytes followed the end of the response."""
        self.content_length: int | None = None
        """The announced length; None if there is none or it must be ignored."""
        self._failure: FetchError | None = None
        self._step: Callable[[list[bytes]], bool] = self._read_head_line
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer that are known to contain no line feed
        self._lines: list[bytes] = []
        self._line_bytes = self._num_interim = self._num_trailers = self._excess_chunks = 0
        self._remaining = 0  # bytes of the body or the chunk

    @property
    def reusable(self) -> bool:
        """True if another request may follow on the connection (RFC 9112 section 9.3)."""
        if self.head is None or not self.complete or self.has_surplus or self._step == self._read_to_end:
            return False
        ambiguous = self.head.get("content-length") is not None and self.head.get("transfer-encoding") is not None
        closes = "close" in self.head.elements("connection") or self.head.status == 101
        return self.head.version >= (1, 1) and not closes and not ambiguous

    def feed(self, data: bytes) -> bytes:
        """Parse the next bytes of the connection. Returns the part of the body that they contain."""
        if self._step == self._read_content and not self._buffer and len(data) < self._remaining:
            self._remaining -= len(data)  # the common case, without a copy
            return data
        body: list[bytes] = []
        self._buffer += data
        try:
            while not self.complete and self._failure is None and self._step(body):
                pass
        except FetchError as failure:
            self._failure = failure
        if self.complete and self._buffer:
            self.has_surplus = True
            self._buffer.clear()
        return body[0] if len(body) == 1 else b"".join(body)

    def feed_eof(self) -> None:
        """Handle the end of the connection. Raises FetchError (connection_lost, body_truncated) unless the response is
        complete."""
        self.raise_failure()
        if self.head is None:
            self._end_redirect_early()
        if self.head is None:
            raise FetchError(Status.CONNECTION_LOST, "Server disconnected")
        if self._step == self._read_to_end:
            self.complete = True
        elif not self.complete:
            raise FetchError(Status.BODY_TRUNCATED, "the connection ended before the body was complete")

    def raise_failure(self) -> None:
        """Raise FetchError (protocol_error) if the bytes so far are not HTTP/1."""
        if self._failure is not None:
            raise self._failure

    def _read_head_line(self, body: list[bytes]) -> bool:
        if not self._lines and not b"HTTP/".startswith(bytes(self._buffer[:5]).lstrip(b"\r\n").upper()):
            raise _violation("not HTTP")
        line = self._take_line()
        if line is None:
            return False
        if line:
            self._lines.append(line)
            if len(self._lines) > MAX_FIELDS:
                raise _violation(f"more than {MAX_FIELDS} header fields")
        elif self._lines:
            self._end_head()
        elif self._line_bytes > 2 * _BLANK_LINES:
            raise _violation("not HTTP: begins with blank lines")
        return True

    def _end_head(self) -> None:
        head, self._lines = _parse_head(self._lines), []
        if 100 <= head.status < 200 and head.status != 101:  # RFC 9110 section 15.2
            self._num_interim += 1
            if self._num_interim > MAX_INTERIM_RESPONSES:
                raise _violation(f"more than {MAX_INTERIM_RESPONSES} interim responses")
            return
        self.head = head
        codings = head.elements("transfer-encoding")
        if head.status in _WITHOUT_BODY:
            self.complete = True
        elif "chunked" in codings:
            self._step = self._read_chunk_size
        elif any(coding != "identity" for coding in codings):
            self._step = self._read_to_end
        else:
            self.content_length = _content_length(head)
            self._remaining = self.content_length or 0
            self._step = self._read_to_end if self.content_length is None else self._read_content
            self.complete = self.content_length == 0

    def _end_redirect_early(self) -> None:
        """Accept a redirect that ends after a whole line. As in curl, the blank line can be missing: some servers close
        the connection as soon as they have sent the Location (aiohttp#1689)."""
        if not self._lines or self._buffer.strip(b"\r"):
            return
        head = _parse_head(self._lines)
        if 300 <= head.status < 400 and head.get("location"):
            self.head, self.complete = head, True

    def _read_content(self, body: list[bytes]) -> bool:
        self._take_bytes(body)
        self.complete = self._remaining == 0
        return False

    def _read_to_end(self, body: list[bytes]) -> bool:
        body.append(bytes(self._buffer))
        self._buffer.clear()
        return False

    def _read_chunk_size(self, body: list[bytes]) -> bool:
        line = self._take_line()
        if line is None:
            return False
        match = _CHUNK_SIZE.match(line)
        if match is None:
            raise _violation(f"no chunk size: {line[:20]!r}")
        self._line_bytes -= len(match[1])  # only the bytes around the size count as overhead
        self._remaining = int(match[1], 16)
        self._excess_chunks += 1 - self._remaining // SMALL_CHUNK_BYTES
        if self._excess_chunks > MAX_SMALL_CHUNKS:
            raise _violation("too many small chunks")
        self._step = self._read_chunk if self._remaining else self._read_trailer
        return True

    def _read_chunk(self, body: list[bytes]) -> bool:
        self._take_bytes(body)
        if self._remaining:
            return False
        self._step = self._read_chunk_end
        return True

    def _read_chunk_end(self, body: list[bytes]) -> bool:
        if not self._buffer.startswith((b"\r\n", b"\n")):
            if self._buffer and self._buffer != b"\r":
                raise _violation("a chunk is longer than its size")
            return False
        del self._buffer[: 1 + self._buffer.startswith(b"\r")]
        self._step = self._read_chunk_size
        return True

    def _read_trailer(self, body: list[bytes]) -> bool:
        line = self._take_line()
        self.complete = line == b""
        self._num_trailers += bool(line)
        if self._num_trailers > MAX_FIELDS:
            raise _violation(f"more than {MAX_FIELDS} trailer fields")
        return bool(line)

    def _take_bytes(self, body: list[bytes]) -> None:
        taken = bytes(self._buffer[: self._remaining])
        del self._buffer[: len(taken)]
        self._remaining -= len(taken)
        body.append(taken)

    def _take_line(self) -> bytes | None:
        """The next line without its end, or None if it is not complete yet."""
        end = self._buffer.find(b"\n", self._searched)
        length = len(self._buffer) if end < 0 else end
        if self._line_bytes + length > MAX_HEAD_BYTES:
            raise _violation("header fields are too long")
        if end < 0:
            self._searched = length
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        self._line_bytes += length
        return line.removesuffix(b"\r")


def _violation(detail: str) -> FetchError:
    return FetchError(Status.PROTOCOL_ERROR, detail)


def _parse_head(lines: list[bytes]) -> ResponseHead:
    match = _STATUS_LINE.match(lines[0])
    if match is None:
        raise _violation(f"no status line: {lines[0][:40]!r}")
    fields: list[tuple[str, str]] = []
    for line in lines[1:]:
        if b"\0" in line:
            raise _violation("NUL in a header field")
        text = line.decode("utf-8", "surrogateescape")
        name, colon, value = text.partition(":")
        if text[0] in " \t":  # a folded line continues the previous one: RFC 9112 section 5.2
            if fields:
                fields[-1] = fields[-1][0], f"{fields[-1][1]} {text.strip()}"
        elif colon:
            fields.append((name.strip().lower(), value.strip()))
    return ResponseHead((int(match[1]), int(match[2] or 0)), int(match[3]), fields)


def _content_length(head: ResponseHead) -> int | None:
    """The Content-Length; None if there is none. Raises FetchError if several differ: RFC 9112 section 6.3."""
    first = head.get("content-length")
    if first is None:
        return None
    matches = [_LENGTH.match(element) for element in head.elements("content-length")]
    lengths = {None if match is None else int(match[1]) for match in matches}
    if None in lengths or not lengths:
        raise _violation(f"Content-Length: {first[:40]}")
    if len(lengths) > 1:
        raise _violation("several Content-Lengths that differ")
    length = lengths.pop()
    return None if length is None or length > _MAX_LENGTH else length
