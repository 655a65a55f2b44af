"""Reads WebP pictures that have neither frames nor alpha, nearly all of them, with OpenCV.

Pillow reads every WebP as an animation: it clears two canvases, and holds the interpreter's lock while libwebp decodes,
so no other picture makes progress. Other WebP files are left to it.
Format: RFC 9649.
"""

import cv2
import numpy as np
from PIL import Image

from pairmill.pipeline.image.resize import Pixels
from pairmill.pipeline.image.strip import strip_metadata, webp_chunks, webp_size

_METADATA = {b"ICCP": ("icc_profile", 0x20), b"EXIF": ("exif", 0x08), b"XMP ": ("xmp", 0x04)}
"""Chunks with metadata: Pillow's names for them, and the flag without which libwebp ignores them."""
_VP8X_BYTES = 18
"""Type and length of the chunk, flags, and the size of the canvas."""
_ANIMATION_FLAG = 0x02
"""In the flags of VP8X."""
_FLAGS_OFFSET = 20
"""Of VP8X, the first chunk, in the file."""
_FRAME_HEADER_BYTES = 24
"""Type and length of the chunk, position and size of the frame, duration, and flags."""
_ALPHA_FLAG = 0x10
"""In the flags of VP8X, and in the byte of a VP8L header that follows width and height."""


class StillWebp(Image.Image):
    """The header of a WebP picture without frames or alpha: mode, size, and metadata in `info`."""

    format = "WEBP"

    def __init__(self, pixels: bytes, size: tuple[int, int], info: dict[str | tuple[int, int], bytes]) -> None:
        """`pixels`: a file with just the chunk of pixels. `size`: (width, height)."""
        super().__init__()
        self._mode, self._size, self.info = "RGB", size, dict(info)
        self._pixels = pixels

    def decode(self) -> Pixels | None:
        """uint8 [height, width, 3], RGB; None if libwebp refuses the file."""
        try:
            decoded = cv2.imdecode(np.frombuffer(self._pixels, np.uint8), cv2.IMREAD_COLOR_RGB)
        except cv2.error:
            return None
        return None if decoded is None else np.asarray(decoded, np.uint8)


def read_still_webp(body: bytes) -> StillWebp | None:
    """The header of a picture without frames or alpha; None if Pillow has to read the file. Never raises."""
    pixels = strip_metadata(body, "WEBP")
    if pixels is None or (size := webp_size(pixels)) is None or webp_size(body) != size:
        return None
    info: dict[str | tuple[int, int], bytes] = {}
    pictures = flags = 0
    for number, (kind, chunk) in enumerate(webp_chunks(body)):
        if kind == b"VP8X" and len(chunk) < _VP8X_BYTES:
            return None
        if number == 0 and kind == b"VP8X":
            flags = chunk[8]
        pictures += kind in (b"VP8 ", b"VP8L")
        if pictures > 1 or _is_of_more(kind, chunk):
            return None
        name, flag = _METADATA.get(kind, ("", 0))
        if flags & flag:
            info.setdefault(name, chunk[8 : 8 + int.from_bytes(chunk[4:8], "little")])
    return StillWebp(pixels, size, info)


def first_frame(body: bytes) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of an animation's first frame; None if the file is no animation."""
    if (chunk := _first_frame_chunk(body)) is None:
        return None
    x, y, width, height = (int.from_bytes(chunk[at : at + 3], "little") for at in (8, 11, 14, 17))
    return 2 * x, 2 * y, 2 * x + width + 1, 2 * y + height + 1


def with_announced_alpha(body: bytes) -> bytes:
    """The file, with the flag for alpha in its header if the first frame of an animation has alpha: without the flag,
    Pillow shows the colors of transparent pixels (libvips#1351). Files without frames do not need it."""
    frame = _first_frame_chunk(body)
    if frame is None or not _is_of_more(frame[_FRAME_HEADER_BYTES:][:4], frame[_FRAME_HEADER_BYTES:]):
        return body
    return body[:_FLAGS_OFFSET] + bytes((body[_FLAGS_OFFSET] | _ALPHA_FLAG,)) + body[_FLAGS_OFFSET + 1 :]


def _first_frame_chunk(body: bytes) -> bytes | None:
    chunks = webp_chunks(body)
    kind, header = next(chunks, (b"", b""))
    if kind != b"VP8X" or not int.from_bytes(header[8:9]) & _ANIMATION_FLAG:
        return None
    return next((chunk for kind, chunk in chunks if kind == b"ANMF" and len(chunk) >= _FRAME_HEADER_BYTES), None)


def _is_of_more(kind: bytes, chunk: bytes) -> bool:
    """Whether a chunk belongs to a picture with frames or alpha."""
    flags = {b"VP8X": 8, b"VP8L": 12}.get(kind)
    has_alpha = flags is not None and bool(int.from_bytes(chunk[flags : flags + 1]) & _ALPHA_FLAG)
    return has_alpha or kind in (b"ANIM", b"ANMF", b"ALPH")
