"""Collects and decompresses a response body as it arrives; refuses it once it is too long or cannot be a picture."""

from collections.abc import Sequence

from pairmill.pipeline.fetch.decompressor import Decompressor, undone_codings
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.image import sniff
from pairmill.schemas.status import Status

_BLOCK_BYTES = 64 << 10


class ResponseBody:
    """Collects the chunks of one response. The constructor, `add` and `finish` can raise FetchError.

    We ask for `identity`, but some servers compress anyway: gzip and deflate are undone within the byte limit
    (RFC 9110 section 8.4.1), once for each time that `codings` names one, and at most five times. Other codings are
    ignored: wrong labels (`utf-8`, `aws-chunked`) are common, and the first bytes of a body that really is compressed
    are not those of a picture.

    The body is checked in blocks that end at fixed positions, so it does not matter how the network splits it.
    """

    def __init__(self, max_bytes: int, content_type: str | None, codings: Sequence[str] = ()) -> None:
        self._max_bytes = max_bytes
        self._content_type = content_type
        self._codings = undone_codings(codings)
        self._layers: list[Decompressor] = []
        self._pending = bytearray()  # the beginning of the next block
        self._wire_bytes = 0
        self._chunks: list[bytes] = []
        self._size = 0
        self._checked = False

    @property
    def num_bytes(self) -> int:
        """Bytes so far, decompressed."""
        return self._size + len(self._pending)

    def max_bytes_after(self, chunk: bytes) -> int:
        """An upper bound on `num_bytes` after this chunk: compressed bytes may expand to any number up to the limit."""
        return self._max_bytes if self._codings or self._layers else self.num_bytes + len(chunk)

    def add(self, chunk: bytes) -> None:
        """Add the next chunk from the wire."""
        if self._is_plain:
            self._add_block(chunk)
            return
        self._pending += chunk
        while self._pending and len(self._pending) >= (length := self._block_bytes()):
            block = bytes(self._pending[:length])
            del self._pending[:length]
            self._add_block(block)

    def finish(self) -> bytes:
        """The whole body."""
        if self._pending:
            block = bytes(self._pending)
            self._pending.clear()
            self._add_block(block)
        if not self._checked and self._size:
            self._check(at_end=True)
        if self._layers and not all(layer.ended for layer in self._layers):
            raise FetchError(Status.BODY_TRUNCATED, "compressed body ends early")
        if not self._size:
            raise FetchError(Status.EMPTY_BODY, "empty once decompressed" if self._layers else None)
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    @property
    def _is_plain(self) -> bool:
        """True once the body is known to be an uncompressed picture, so that blocks no longer matter."""
        return self._checked and not self._layers and not self._pending

    def _block_bytes(self) -> int:
        """Bytes up to the end of the block: position 32, 1,024, or a multiple of 64 KiB; at most one byte above the
        limit."""
        ends = sniff.FORMAT_HEAD_BYTES, sniff.TEXT_HEAD_BYTES, (self._wire_bytes // _BLOCK_BYTES + 1) * _BLOCK_BYTES
        end = next(end for end in ends if end > self._wire_bytes)
        return min(end, self._max_bytes + 1) - self._wire_bytes

    def _add_block(self, block: bytes) -> None:
        self._wire_bytes += len(block)
        if self._wire_bytes > self._max_bytes:  # compressed bytes are limited even if they expand to nothing
            raise self._too_large()
        self._pass_through(block, 0)

    def _pass_through(self, data: bytes, depth: int) -> None:
        """Pass data through the layers from `depth` on, and keep the result."""
        if depth < len(self._layers):
            for piece in self._layers[depth].decompress(data):
                self._pass_through(piece, depth + 1)
            return
        self._chunks.append(data)
        self._size += len(data)
        if not self._checked and self._size >= sniff.FORMAT_HEAD_BYTES:
            self._check(at_end=False)
        if self._size > self._max_bytes:
            raise self._too_large()

    def _check(self, at_end: bool) -> None:
        """Check that the first bytes are those of a picture, once enough of them have arrived."""
        head = b"".join(self._chunks)[: sniff.TEXT_HEAD_BYTES] if len(self._chunks) > 1 else self._chunks[0]
        found = sniff.image_format(head)
        if found is None and (layer := self._layer_for(head)) is not None:
            compressed, self._chunks, self._size = b"".join(self._chunks), [], 0
            self._layers.append(layer)
            self._pass_through(compressed, len(self._layers) - 1)
            if at_end and not self._checked and self._size:
                self._check(at_end=True)
            return
        if found is None and not at_end and len(head) < sniff.TEXT_HEAD_BYTES and sniff.looks_like_text(head):
            return
        self._checked = True
        if found not in sniff.DECODED:
            raise self._refusal(found, head)

    def _layer_for(self, head: bytes) -> Decompressor | None:
        """A decompressor for the coding that was applied last, if the bytes look like that coding."""
        while self._codings:
            layer = Decompressor.for_coding(self._codings.pop(), head, self._max_bytes)
            if layer is not None:
                return layer
        return None

    def _too_large(self) -> FetchError:
        return FetchError(Status.BODY_TOO_LARGE, f"more than {self._max_bytes} bytes")

    def _refusal(self, found: str | None, head: bytes) -> FetchError:
        if found is not None:
            return FetchError(Status.IMAGE_UNSUPPORTED, found.lower())
        kind = sniff.text_kind(head)
        if kind == "svg":
            return FetchError(Status.IMAGE_UNSUPPORTED, kind)
        seen = f"looks like {kind}" if kind else f"begins with {head[:8].hex(' ')}"
        return FetchError(Status.NOT_AN_IMAGE, f"{self._content_type or 'no content type'}, {seen}")
