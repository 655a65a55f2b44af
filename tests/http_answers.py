"""Lists responses that servers send: valid, odd and broken ones."""

import gzip
import zlib
from dataclasses import dataclass

from pairmill.schemas.status import Status

PICTURE = b"\xff\xd8\xff\xe0" + bytes(range(48, 128))
"""The body of the valid responses."""

_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
_SIZE = b"%d" % len(PICTURE)
_HEX = b"%x" % len(PICTURE)


@dataclass(frozen=True)
class Answer:
    """The bytes that the server sends before it closes the connection."""

    bytes: bytes
    status: Status = Status.OK
    why_not_as_curl: str | None = None
    """Why we accept a picture that curl 7.88 refuses, or the other way round."""


def _length(body: bytes, fields: bytes = b"", line: bytes = _OK) -> bytes:
    return line + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _chunks(*chunks: bytes, fields: bytes = b"", end: bytes = b"0\r\n\r\n", line: bytes = _OK) -> bytes:
    return line + fields + _CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def _coded(body: bytes, coding: bytes) -> bytes:
    return _length(body, b"Content-Encoding: " + coding + b"\r\n")


def _bare_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


_ZIPPED = gzip.compress(PICTURE, mtime=0)
_PROTOCOL, _TRUNCATED = Status.PROTOCOL_ERROR, Status.BODY_TRUNCATED
_MEMBERS = "RFC 1952 section 2.2: a file consists of any number of members"
_BEHIND = "gzip(1) and browsers ignore trailing bytes"

ANSWERS: dict[str, Answer] = {
    # framing by length
    "length": Answer(_length(PICTURE)),
    "length, trailing bytes": Answer(_length(PICTURE) + b"\r\nstray"),
    "length, followed by another answer": Answer(_length(PICTURE) + _length(b"another")),
    "equal lengths in two fields": Answer(_length(PICTURE, b"content-length: " + _SIZE + b"\r\n")),
    "equal lengths in one field": Answer(_OK + b"Content-Length: %s, %s\r\n\r\n" % (_SIZE, _SIZE) + PICTURE),
    "equal lengths, one padded": Answer(_OK + b"Content-Length: 00%s,%s\r\n\r\n" % (_SIZE, _SIZE) + PICTURE),
    "length and an empty element": Answer(_OK + b"Content-Length: " + _SIZE + b",\r\n\r\n" + PICTURE),
    "length after an empty element": Answer(
        _OK + b"Content-Length: ," + _SIZE + b"\r\n\r\n" + PICTURE, Status.OK, "RFC 9110 section 5.6.1.2"
    ),
    "only empty elements as length": Answer(_OK + b"Content-Length: ,\r\n\r\n" + PICTURE, _PROTOCOL),
    "length with a sign": Answer(_OK + b"Content-Length: +" + _SIZE + b"\r\n\r\n" + PICTURE),
    "length with a unit": Answer(_OK + b"Content-Length: " + _SIZE + b" bytes\r\n\r\n" + PICTURE),
    "length beyond 64 bits": Answer(_OK + b"Content-Length: 99999999999999999999\r\n\r\n" + PICTURE),
    "different lengths": Answer(_length(PICTURE, b"Content-Length: 5\r\n"), _PROTOCOL, "RFC 9112 section 6.3, item 5"),
    "negative length": Answer(_OK + b"Content-Length: -5\r\n\r\n" + PICTURE, _PROTOCOL),
    "length that is not a number": Answer(_OK + b"Content-Length: many\r\n\r\n" + PICTURE, _PROTOCOL),
    "empty length": Answer(_OK + b"Content-Length:\r\n\r\n" + PICTURE, _PROTOCOL),
    "length larger than the body": Answer(_OK + b"Content-Length: 99\r\n\r\n" + PICTURE, _TRUNCATED),
    "zero length": Answer(_length(b""), Status.EMPTY_BODY),
    "until the connection closes": Answer(_OK + b"\r\n" + PICTURE),
    "until the connection closes, HTTP/1.0": Answer(b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE),
    "until the connection closes, no body": Answer(_OK + b"\r\n", Status.EMPTY_BODY),
    # framing by chunks
    "chunks": Answer(_chunks(PICTURE[:30], PICTURE[30:])),
    "chunks of one byte": Answer(_chunks(*(bytes([byte]) for byte in PICTURE))),
    "chunks, trailing bytes": Answer(_chunks(PICTURE) + b"\r\n\r\nstray"),
    "chunks, HTTP/1.0": Answer(_chunks(PICTURE, line=b"HTTP/1.0 200 OK\r\n")),
    "chunks after a length": Answer(_chunks(PICTURE, fields=b"Content-Length: 5\r\n")),
    "chunks before a length": Answer(_OK + b"Content-Length: 7\r\n".join([b"", _chunks(PICTURE)[len(_OK) :]])),
    "chunked twice": Answer(_chunks(PICTURE, fields=b"Transfer-Encoding: chunked\r\n")),
    "chunk extensions": Answer(_OK + _CHUNKED + _HEX + b';a=b;c="d"\r\n' + PICTURE + b"\r\n0;e\r\n\r\n"),
    "blanks after a chunk size": Answer(_OK + _CHUNKED + _HEX + b"   \r\n" + PICTURE + b"\r\n0 \r\n\r\n"),
    "chunk size with leading zeros": Answer(_OK + _CHUNKED + b"0000" + _HEX + b"\r\n" + PICTURE + b"\r\n000\r\n\r\n"),
    "chunk size in upper case": Answer(_OK + _CHUNKED + _HEX.upper() + b"\r\n" + PICTURE + b"\r\n0\r\n\r\n"),
    "chunks with bare line feeds": Answer(_OK + _CHUNKED + _HEX + b"\n" + PICTURE + b"\n0\n\n"),
    "trailers": Answer(_chunks(PICTURE, end=b"0\r\nX-Checksum: 1\r\nX: y\r\n\r\n")),
    "no last chunk": Answer(_chunks(PICTURE, end=b""), _TRUNCATED),
    "no line after the last chunk": Answer(_chunks(PICTURE, end=b"0\r\n"), _TRUNCATED),
    "no chunk size": Answer(_chunks(PICTURE, end=b"zz\r\n\r\n"), _PROTOCOL),
    "chunk size with a prefix": Answer(_OK + _CHUNKED + b"0x" + _HEX + b"\r\n" + PICTURE + b"\r\n0\r\n\r\n", _PROTOCOL),
    "chunk longer than its size": Answer(_OK + _CHUNKED + b"5\r\n" + PICTURE + b"\r\n0\r\n\r\n", _PROTOCOL),
    "identity as transfer coding": Answer(_length(PICTURE, b"Transfer-Encoding: identity\r\n")),
    "gzip as transfer coding": Answer(_chunks(_ZIPPED).replace(b": chunked", b": gzip, chunked")),
    # lines
    "bare line feeds": Answer(b"HTTP/1.1 200 OK\nContent-Length: " + _SIZE + b"\n\n" + PICTURE),
    "a folded line": Answer(_length(PICTURE, b"X: a\r\n\tb\r\n")),
    "no reason": Answer(_length(PICTURE, line=b"HTTP/1.1 200\r\n")),
    "no blank before the reason": Answer(_length(PICTURE, line=b"HTTP/1.1 200OK\r\n")),
    "two blanks before the code": Answer(_length(PICTURE, line=b"HTTP/1.1  200 OK\r\n")),
    "lower-case version": Answer(_length(PICTURE, line=b"http/1.1 200 ok\r\n")),
    "HTTP/2 in the status line": Answer(_length(PICTURE, line=b"HTTP/2 200\r\n")),
    "leading blank line": Answer(b"\r\n" + _length(PICTURE), Status.OK, "Chrome skips them"),
    "a blank before the colon": Answer(_OK + b"Content-Length : " + _SIZE + b"\r\n\r\n" + PICTURE),
    "no field name": Answer(_length(PICTURE, b": x\r\n")),
    "no colon": Answer(_length(PICTURE, b"X\r\n"), Status.OK, "browsers ignore the line, and so did curl before 7.84"),
    "non-ASCII bytes": Answer(_length(PICTURE, b"X-\xe4: \xff\xfe\r\n")),
    "a carriage return in a value": Answer(_length(PICTURE, b"X: a\rb\r\n")),
    "300 fields": Answer(_length(PICTURE, b"X: y\r\n" * 300)),
    "a long field": Answer(_length(PICTURE, b"X: " + b"y" * 20_000 + b"\r\n")),
    "a field of 70 KB": Answer(_length(PICTURE, b"X: " + b"y" * 70_000 + b"\r\n")),
    "a field of 150 KB": Answer(_length(PICTURE, b"X: " + b"y" * 150_000 + b"\r\n"), Status.OK, "Chrome accepts it"),
    "fields of 300 KB": Answer(_length(PICTURE, (b"X: " + b"y" * 60_000 + b"\r\n") * 5)),
    "fields of 315 KB": Answer(_length(PICTURE, (b"X: " + b"y" * 63_000 + b"\r\n") * 5), _PROTOCOL),
    "NUL": Answer(_length(PICTURE, b"X: a\0b\r\n"), _PROTOCOL),
    "another protocol": Answer(b"ICY 200 OK\r\n\r\n" + PICTURE, _PROTOCOL),
    "HTTP/0.9": Answer(PICTURE, _PROTOCOL),
    "a code of four digits": Answer(_length(PICTURE, line=b"HTTP/1.1 2000 OK\r\n"), _PROTOCOL),
    "a code of two digits": Answer(_length(PICTURE, line=b"HTTP/1.1 20 OK\r\n"), _PROTOCOL),
    "half a status line": Answer(b"HTTP/1.1 2", Status.CONNECTION_LOST),
    "half of the header fields": Answer(_OK + b"Content-Le", Status.CONNECTION_LOST),
    "nothing": Answer(b"", Status.CONNECTION_LOST),
    # codes
    "preceded by 100": Answer(b"HTTP/1.1 100 Continue\r\n\r\n" + _length(PICTURE)),
    "preceded by many 103s": Answer(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 20 + _length(PICTURE)),
    "preceded by 199": Answer(b"HTTP/1.1 199 X\r\n\r\n" + _length(PICTURE)),
    "101": Answer(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + _length(PICTURE), Status.HTTP_OTHER),
    "203": Answer(_length(PICTURE, line=b"HTTP/1.1 203 Other\r\n")),
    "204": Answer(b"HTTP/1.1 204 No Content\r\n\r\n", Status.EMPTY_BODY),
    "204 with a body": Answer(_length(PICTURE, line=b"HTTP/1.1 204 No Content\r\n"), Status.EMPTY_BODY),
    "204 with chunks": Answer(_chunks(PICTURE, line=b"HTTP/1.1 204 No Content\r\n"), Status.EMPTY_BODY),
    "205 without a body": Answer(_length(b"", line=b"HTTP/1.1 205 Reset Content\r\n"), Status.EMPTY_BODY),
    "304": Answer(b"HTTP/1.1 304 Not Modified\r\n\r\n", Status.HTTP_OTHER),
    "304 with a length": Answer(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 84\r\n\r\n", Status.HTTP_OTHER),
    "404 with a broken body": Answer(_chunks(PICTURE, end=b"zz", line=b"HTTP/1.1 404 No\r\n"), Status.HTTP_4XX),
    # codings
    "gzip": Answer(_coded(_ZIPPED, b"gzip")),
    "gzip by another name": Answer(_coded(_ZIPPED, b"X-GZip")),
    "gzip in chunks": Answer(_chunks(_ZIPPED[:20], _ZIPPED[20:], fields=b"Content-Encoding: gzip\r\n")),
    "gzip of two members": Answer(
        _coded(gzip.compress(PICTURE[:40]) + gzip.compress(PICTURE[40:]), b"gzip"), Status.OK, _MEMBERS
    ),
    "gzip of many members": Answer(
        _coded(b"".join(gzip.compress(PICTURE[n : n + 7]) for n in range(0, 84, 7)), b"gzip"), Status.OK, _MEMBERS
    ),
    "gzip with an empty member": Answer(_coded(_ZIPPED + gzip.compress(b""), b"gzip"), Status.OK, _MEMBERS),
    "gzip, trailing bytes": Answer(_coded(_ZIPPED + b"behind", b"gzip"), Status.OK, _BEHIND),
    "gzip, trailing zeros": Answer(_coded(_ZIPPED + bytes(20), b"gzip"), Status.OK, _BEHIND),
    "gzip, trailing half of a magic number": Answer(_coded(_ZIPPED + b"\x1f", b"gzip"), Status.OK, _BEHIND),
    "gzip without its checksum": Answer(_coded(_ZIPPED[:-8], b"gzip")),
    "gzip with half its checksum": Answer(_coded(_ZIPPED[:-3], b"gzip")),
    "gzip with a wrong checksum": Answer(_coded(_ZIPPED[:-8] + b"12345678", b"gzip"), _PROTOCOL),
    "gzip that ends early": Answer(_coded(_ZIPPED[:-12], b"gzip"), _TRUNCATED),
    "deflate with a zlib header": Answer(_coded(zlib.compress(PICTURE), b"deflate")),
    "deflate without its checksum": Answer(_coded(zlib.compress(PICTURE)[:-4], b"deflate")),
    "bare deflate": Answer(_coded(_bare_deflate(PICTURE), b"deflate")),
    "bare deflate, trailing bytes": Answer(_coded(_bare_deflate(PICTURE) + b"more", b"deflate")),
    "zlib labeled gzip": Answer(_coded(zlib.compress(PICTURE), b"gzip")),
    "gzip labeled deflate": Answer(_coded(_ZIPPED, b"deflate"), Status.OK, "curl accepts only the opposite mistake"),
    "gzip twice": Answer(_coded(gzip.compress(_ZIPPED), b"gzip, gzip")),
    "deflate, then gzip": Answer(_coded(gzip.compress(zlib.compress(PICTURE)), b"deflate,gzip")),
    "gzip, then identity": Answer(_coded(_ZIPPED, b"gzip, identity")),
    "identity": Answer(_coded(PICTURE, b"identity")),
    "none": Answer(_coded(PICTURE, b"none")),
    "empty coding": Answer(_coded(PICTURE, b"")),
    "plain picture labeled gzip": Answer(_coded(PICTURE, b"gzip"), Status.OK, "the label is wrong, not the picture"),
    "plain picture with an unknown coding": Answer(_coded(PICTURE, b"utf-8"), Status.OK, "as above"),
    "a page": Answer(_length(b"<!DOCTYPE html><html><body>" + b"." * 60), Status.NOT_AN_IMAGE),
    "a page that ends early": Answer(
        _OK + b"Content-Length: 99\r\n\r\n{'error': 'what you look for is not here'}", Status.NOT_AN_IMAGE
    ),
}  # fmt: skip
