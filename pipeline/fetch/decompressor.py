"""Undoes one content coding: gzip with one or more members, zlib, or raw deflate."""

import zlib
from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.schemas.status import Status

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP, _ZLIB, _BARE = 31, 15, -15  # wbits of zlib
_PIECE_BYTES = 64 << 10
_MAX_CODINGS = 5
"""As in curl (CVE-2023-23916): 36 kB of nested gzip needed 1,500 decompressors, each with its own byte limit."""
_UNSUPPORTED = frozenset({"br", "zstd", "compress", "x-compress"})


class Decompressor:
    """Decompresses a stream with one coding. Limits its own output, even if a later coding would shrink it."""

    CODINGS: ClassVar = frozenset({"gzip", "x-gzip", "deflate"})

    def __init__(self, wbits: int, max_bytes: int) -> None:
        self._wbits = wbits
        self._max_bytes = max_bytes
        self._size = 0
        self._behind = b""  # bytes after a member, too few to tell whether another member follows
        self._only_garbage = False
        self._start_member()

    @classmethod
    def for_coding(cls, coding: str, head: bytes, max_bytes: int) -> Self | None:
        """A decompressor for a coding; None if the first bytes contradict the label, which is then ignored."""
        if head.startswith(_GZIP_MAGIC):  # RFC 1952; some servers label it as deflate
            return cls(_GZIP, max_bytes)
        if head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0:  # RFC 1950, with correct check bits
            return cls(_ZLIB, max_bytes) if coding == "deflate" or _inflates(head, _ZLIB) else None
        return cls(_BARE, max_bytes) if coding == "deflate" and _inflates(head, _BARE) else None

    @property
    def ended(self) -> bool:
        """True at the end of a member. As in curl and browsers, its checksum may be missing but not wrong."""
        if self._stream.eof or self._wbits == _BARE:
            return self._stream.eof
        trailer = self._adler.to_bytes(4, "big")  # RFC 1950; for gzip, RFC 1952 section 2.3.1
        if self._wbits == _GZIP:
            trailer = self._crc.to_bytes(4, "little") + (self._member_bytes & 0xFFFF_FFFF).to_bytes(4, "little")
        return any(_completes(self._stream, trailer[start:]) for start in range(len(trailer)))

    def decompress(self, data: bytes) -> Iterator[bytes]:
        """The decompressed data, in pieces of at most 64 KiB. Raises FetchError (protocol_error, body_too_large)."""
        while not self._only_garbage:
            if self._stream.eof:
                data, self._behind = self._behind + data, b""
                if not data or not self._starts_member(data):
                    return
                self._start_member()
            try:
                piece = self._stream.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise FetchError(Status.PROTOCOL_ERROR, f"content coding: {error}") from error
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            self._count(piece)
            if self._size > self._max_bytes:
                raise FetchError(Status.BODY_TOO_LARGE, f"more than {self._max_bytes} bytes")
            if piece:
                yield piece
            if not data and len(piece) < _PIECE_BYTES:
                return

    def _start_member(self) -> None:
        self._stream = zlib.decompressobj(self._wbits)
        self._crc, self._adler, self._member_bytes = 0, 1, 0

    def _count(self, piece: bytes) -> None:
        self._size += len(piece)
        self._member_bytes += len(piece)
        if self._wbits == _GZIP:
            self._crc = zlib.crc32(piece, self._crc)
        elif self._wbits == _ZLIB:
            self._adler = zlib.adler32(piece, self._adler)

    def _starts_member(self, data: bytes) -> bool:
        """Whether another gzip member follows (RFC 1952 section 2.2). As in gzip(1), anything else is ignored."""
        if self._wbits == _GZIP and data.startswith(_GZIP_MAGIC):
            return True
        if self._wbits == _GZIP and data == _GZIP_MAGIC[:1]:
            self._behind = data
        else:
            self._only_garbage = True
        return False


def undone_codings(codings: Sequence[str]) -> list[str]:
    """The codings that we undo, in the same order. Raises FetchError if there are too many."""
    undone = [coding for coding in codings if coding in Decompressor.CODINGS]
    if len(undone) > _MAX_CODINGS:
        raise FetchError(Status.PROTOCOL_ERROR, f"more than {_MAX_CODINGS} content codings")
    return undone


def decompressed_text(data: bytes, codings: Sequence[str], max_bytes: int) -> bytes:
    """The first `max_bytes` of a text body, given at least that many of its bytes as they arrived. Wrong labels are
    ignored, and gzip without a label is undone. Raises FetchError for a body that ends early or has a coding that
    cannot be undone."""
    unsupported = _UNSUPPORTED.intersection(codings)
    if unsupported and "\ufffd" in data.decode("utf-8", "replace")[:1_000]:
        raise FetchError(Status.PROTOCOL_ERROR, f"content coding: {min(unsupported)}")
    for coding in ("gzip", *undone_codings(codings))[::-1]:
        if not data:
            break
        is_whole = len(data) < max_bytes
        if (layer := Decompressor.for_coding(coding, data, max_bytes + _PIECE_BYTES)) is not None:
            data = _prefix(layer.decompress(data), max_bytes)
            if is_whole and len(data) < max_bytes and not layer.ended:
                raise FetchError(Status.BODY_TRUNCATED, "compressed body ends early")
    return data


def _prefix(pieces: Iterator[bytes], max_bytes: int) -> bytes:
    prefix = b""
    for piece in pieces:
        prefix += piece
        if len(prefix) >= max_bytes:
            break
    return prefix[:max_bytes]


def _inflates(head: bytes, wbits: int) -> bool:
    """Whether the bytes can begin a stream of this kind. Microsoft's servers once sent raw deflate (RFC 1951)."""
    try:
        zlib.decompressobj(wbits).decompress(head)
    except zlib.error:
        return False
    return True


def _completes(stream: "zlib._Decompress", trailer: bytes) -> bool:
    """Whether only these bytes are missing at the end of a stream."""
    stream = stream.copy()
    try:
        return not stream.decompress(trailer) and stream.eof and not stream.unused_data
    except zlib.error:
        return False
