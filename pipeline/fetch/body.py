"""A body as it arrives: counted, unpacked if need be, and refused as soon as it cannot become a picture."""

import zlib

from pairmill.pipeline.image import sniff
from pairmill.schemas.status import Status

_PACKED = frozenset({"gzip", "x-gzip", "deflate"})
_ANY_ZLIB_HEADER = 47  # zlib's wbits: 15 plus 32 takes gzip and zlib alike


class FetchError(Exception):
    """A download ends here, with this Status."""

    def __init__(self, status: Status, detail: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(status.value, detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


class PictureBody:
    """Collects the chunks of one answer; `add` and `finish` raise FetchError.

    We ask for `identity`, and some servers pack all the same: gzip and deflate are unpacked within the byte limit
    (RFC 9110 section 8.4.1). Other content codings are tried as they are: wrong labels (`utf-8`, `aws-chunked`) are
    common, and a body that is really packed fails the look at its first bytes.
    """

    def __init__(self, max_bytes: int, content_type: str | None, content_encoding: str = "") -> None:
        self._max_bytes = max_bytes
        self._content_type = content_type
        self._may_be_packed = content_encoding.strip().lower() in _PACKED
        self._unpacker: zlib._Decompress | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._wire_bytes = 0  # before unpacking: what unpacks to nothing is bounded too
        self._checked = False

    @property
    def num_bytes(self) -> int:
        """Bytes held so far, unpacked."""
        return self._size

    def most_after(self, chunk: bytes) -> int:
        """Bytes that may be held once this chunk was added: what is packed may unpack to anything within the limit."""
        may_grow = self._may_be_packed or self._unpacker is not None
        return self._max_bytes if may_grow else self._size + len(chunk)

    def add(self, chunk: bytes) -> None:
        """Take the next chunk off the wire."""
        if self._unpacker is not None:
            self._wire_bytes += len(chunk)
            if self._wire_bytes > self._max_bytes:
                raise FetchError(Status.BODY_TOO_LARGE, f"more than {self._max_bytes} bytes")
            if self._unpacker.eof:
                raise FetchError(Status.PROTOCOL_ERROR, "bytes after the end of the compressed body")
            chunk = self._unpack(chunk)
        self._chunks.append(chunk)
        self._size += len(chunk)
        if not self._checked and self._size >= sniff.ENOUGH:
            self._check(at_end=False)
        if self._size > self._max_bytes:
            raise FetchError(Status.BODY_TOO_LARGE, f"more than {self._max_bytes} bytes")

    def finish(self) -> bytes:
        """The whole body."""
        if not self._size and self._unpacker is None:
            raise FetchError(Status.EMPTY_BODY)
        if not self._checked:
            self._check(at_end=True)
        if self._unpacker is not None and not self._unpacker.eof:
            raise FetchError(Status.BODY_TRUNCATED, "compressed body ends early")
        if not self._size:
            raise FetchError(Status.EMPTY_BODY, "empty once unpacked")
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def _check(self, at_end: bool) -> None:
        """Look at the first bytes, once there are enough of them."""
        head = b"".join(self._chunks)[: sniff.ENOUGH_TEXT] if len(self._chunks) > 1 else self._chunks[0]
        found = sniff.image_format(head)
        if found is None and self._may_be_packed and _looks_packed(head):
            self._may_be_packed = False
            self._start_unpacking(at_end)
            return
        if found is None and not at_end and len(head) < sniff.ENOUGH_TEXT and sniff.looks_like_text(head):
            return
        self._checked = True
        if found not in sniff.DECODED:
            raise self._refusal(found, head)

    def _start_unpacking(self, at_end: bool) -> None:
        packed, self._chunks, self._size = b"".join(self._chunks), [], 0
        self._unpacker = zlib.decompressobj(_ANY_ZLIB_HEADER)
        self.add(packed)
        if at_end and not self._checked and self._size:
            self._check(at_end=True)

    def _unpack(self, chunk: bytes) -> bytes:
        assert self._unpacker is not None
        try:
            # One byte more than may still come is enough to know that it is too many.
            return self._unpacker.decompress(chunk, self._max_bytes - self._size + 1)
        except zlib.error as error:
            raise FetchError(Status.PROTOCOL_ERROR, f"content coding: {error}") from error

    def _refusal(self, found: str | None, head: bytes) -> FetchError:
        if found is not None:
            return FetchError(Status.IMAGE_UNSUPPORTED, found.lower())
        kind = sniff.text_kind(head)
        if kind == "svg":
            return FetchError(Status.IMAGE_UNSUPPORTED, kind)
        seen = f"looks like {kind}" if kind else f"begins with {head[:8].hex(' ')}"
        return FetchError(Status.NOT_AN_IMAGE, f"{self._content_type or 'no content type'}, {seen}")


def _looks_packed(head: bytes) -> bool:
    """Gzip's magic number (RFC 1952), or a zlib header (RFC 1950) with its check bits right."""
    return head[:2] == b"\x1f\x8b" or (head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0)
