"""A response body as it arrives: counted, decompressed, and refused as soon as it cannot be a picture."""

import zlib

from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.image import sniff
from pairmill.schemas.status import Status

_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})
_ANY_ZLIB_HEADER = 47  # zlib's wbits: 15 plus 32 takes gzip and zlib alike


class ResponseBody:
    """Collects the chunks of one response; `add` and `finish` raise FetchError.

    We ask for `identity`, but some servers compress anyway: gzip and deflate are decompressed within the byte limit
    (RFC 9110 section 8.4.1). Other content codings are ignored: wrong labels (`utf-8`, `aws-chunked`) are common, and
    the first bytes of a body that really is compressed are not those of a picture.
    """

    def __init__(self, max_bytes: int, content_type: str | None, content_encoding: str = "") -> None:
        self._max_bytes = max_bytes
        self._content_type = content_type
        self._may_be_compressed = content_encoding.strip().lower() in _COMPRESSED
        self._decompressor: zlib._Decompress | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._wire_bytes = 0  # compressed bytes, which are bounded even if they decompress to nothing
        self._checked = False

    @property
    def num_bytes(self) -> int:
        """Bytes so far, decompressed."""
        return self._size

    def max_bytes_after(self, chunk: bytes) -> int:
        """Upper bound of `num_bytes` after this chunk: compressed bytes may become any number up to the limit."""
        may_grow = self._may_be_compressed or self._decompressor is not None
        return self._max_bytes if may_grow else self._size + len(chunk)

    def add(self, chunk: bytes) -> None:
        """Add the next chunk from the wire."""
        if self._decompressor is not None:
            self._wire_bytes += len(chunk)
            if self._wire_bytes > self._max_bytes:
                raise FetchError(Status.BODY_TOO_LARGE, f"more than {self._max_bytes} bytes")
            if self._decompressor.eof:
                raise FetchError(Status.PROTOCOL_ERROR, "bytes after the end of the compressed body")
            chunk = self._decompress(chunk)
        self._chunks.append(chunk)
        self._size += len(chunk)
        if not self._checked and self._size >= sniff.FORMAT_HEAD_BYTES:
            self._check(at_end=False)
        if self._size > self._max_bytes:
            raise FetchError(Status.BODY_TOO_LARGE, f"more than {self._max_bytes} bytes")

    def finish(self) -> bytes:
        """The whole body."""
        if not self._size and self._decompressor is None:
            raise FetchError(Status.EMPTY_BODY)
        if not self._checked:
            self._check(at_end=True)
        if self._decompressor is not None and not self._decompressor.eof:
            raise FetchError(Status.BODY_TRUNCATED, "compressed body ends early")
        if not self._size:
            raise FetchError(Status.EMPTY_BODY, "empty once decompressed")
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def _check(self, at_end: bool) -> None:
        """Check the first bytes, once there are enough of them."""
        head = b"".join(self._chunks)[: sniff.TEXT_HEAD_BYTES] if len(self._chunks) > 1 else self._chunks[0]
        found = sniff.image_format(head)
        if found is None and self._may_be_compressed and _looks_compressed(head):
            self._may_be_compressed = False
            self._start_decompressing(at_end)
            return
        if found is None and not at_end and len(head) < sniff.TEXT_HEAD_BYTES and sniff.looks_like_text(head):
            return
        self._checked = True
        if found not in sniff.DECODED:
            raise self._refusal(found, head)

    def _start_decompressing(self, at_end: bool) -> None:
        compressed, self._chunks, self._size = b"".join(self._chunks), [], 0
        self._decompressor = zlib.decompressobj(_ANY_ZLIB_HEADER)
        self.add(compressed)
        if at_end and not self._checked and self._size:
            self._check(at_end=True)

    def _decompress(self, chunk: bytes) -> bytes:
        assert self._decompressor is not None
        try:
            # One byte above the limit is enough to know that there are too many.
            return self._decompressor.decompress(chunk, self._max_bytes - self._size + 1)
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


def _looks_compressed(head: bytes) -> bool:
    """Gzip's magic number (RFC 1952), or a zlib header (RFC 1950) with its check bits right."""
    return head[:2] == b"\x1f\x8b" or (head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0)
