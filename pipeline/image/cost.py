"""Estimates, from the header of a picture, how much memory and CPU time decoding takes. A picture that costs too much
is a decompression bomb.

The numbers were measured per decoder with 20-megapixel pictures: noise, flat color and drawings (docs/decisions/010).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, JpegImagePlugin

from pairmill.pipeline.image import jpeg
from pairmill.pipeline.image.avif import coded_pixels
from pairmill.pipeline.image.png import MAX_CHUNKS, PngFile
from pairmill.pipeline.image.tiff import TiffFile

BYTES_PER_PIXEL = 8
"""Bytes of memory allowed per picture for each pixel of `images.max_pixels`."""

MIN_MEMORY_BYTES = 256 << 20
"""Minimum memory allowed per picture, even if the job allows only small pictures."""

MAX_CPU_S = 5.0

_RGB_BYTES = 3
"""Bytes per pixel of the array that every picture ends up in."""

_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Bytes per pixel in Pillow, by mode; 4 for all other modes."""

_LIBRARY_BYTES = {"WEBP": 20, "AVIF": 20}
"""Total bytes per pixel for libraries that keep copies of their own besides Pillow's: libwebp keeps two canvases and a
frame, libavif the planes and the interleaved picture."""

_ROW_BYTES = 64
"""Pillow keeps a pointer and at least four bytes per row."""

_COLUMN_BYTES = 32
"""Decoders keep at least two rows, with up to 8 bytes per pixel."""

_NS_PER_PIXEL = {"JPEG": 20, "PNG": 10, "GIF": 15, "BMP": 15, "TIFF": 40, "WEBP": 45, "AVIF": 110}
_NS_PER_ROW = 2_000
_NS_PER_PNG_BYTE = 4.5  # of unpacked data
_NS_PER_STRIP = 50_000
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_RUN_LENGTHS = (1, 2)  # BMP compressions that Pillow decodes in Python


@dataclass(frozen=True, slots=True)
class Cost:
    """The most memory and CPU time that decoding can take."""

    memory_bytes: float
    cpu_s: float
    is_bomb: str | None = None
    """Why the picture is too expensive regardless of these numbers; None if only the numbers count."""

    def excess(self, budget: "Cost") -> str | None:
        """Why the cost exceeds the budget; None if it does not."""
        if self.is_bomb is not None:
            return self.is_bomb
        if self.memory_bytes > budget.memory_bytes:
            return f"decoding would take {self.memory_bytes / 1e6:,.0f} MB"
        if self.cpu_s > budget.cpu_s:
            return f"decoding would take {self.cpu_s:.0f} s"
        return None


@lru_cache
def budget(max_pixels: int) -> Cost:
    """The most that one picture may cost in a job with this `images.max_pixels`."""
    return Cost(max(BYTES_PER_PIXEL * max_pixels, MIN_MEMORY_BYTES), MAX_CPU_S)


def decoding_cost(
    format: str,
    mode: str,
    size: tuple[int, int],
    extra_bytes: float = 0,
    extra_ns: float = 0,
    is_bomb: str | None = None,
) -> Cost:
    """The cost of a picture with this format, Pillow mode and size (pixels). `extra_bytes` and `extra_ns`: the
    additional cost of this file."""
    width, height = size
    pixel_bytes = _LIBRARY_BYTES.get(format) or _STORED_BYTES.get(mode, 4) + _RGB_BYTES
    memory_bytes = width * height * pixel_bytes + width * _COLUMN_BYTES + height * _ROW_BYTES + extra_bytes
    cpu_ns = width * height * _NS_PER_PIXEL[format] + height * _NS_PER_ROW + extra_ns
    return Cost(memory_bytes, cpu_ns * 1e-9, is_bomb)


def picture_cost(body: bytes, format: str, opened: Image.Image, png: PngFile | None) -> Cost:
    """The cost of an opened picture (Pillow's format names; `png` only for a PNG)."""
    pixels = opened.size[0] * opened.size[1]
    extra_bytes = extra_ns = 0.0
    is_bomb = None
    if format == "JPEG" and isinstance(opened, JpegImagePlugin.JpegImageFile):
        scans, frame = jpeg.count_scans(body)
        is_bomb = f"more than {jpeg.MAX_SCANS} scans" if scans > jpeg.MAX_SCANS else None
        extra_bytes, extra_ns = jpeg.extra_cost(opened.size, opened.layer, scans, frame)
    elif png is not None:
        is_bomb = f"more than {MAX_CHUNKS:,} chunks" if png.num_chunks > MAX_CHUNKS else None
        channels = _PNG_CHANNELS.get(png.color_type, 4)
        passes = 2 if png.bit_depth == 16 and png.key is not None and channels == 3 else 1  # see decode.py
        extra_ns = pixels * _NS_PER_PNG_BYTE * channels * png.bit_depth / 8 * passes
        extra_bytes = pixels * 4 * (passes - 1) + len(body)
    elif isinstance(opened, TiffFile):
        extra_bytes, extra_ns = opened.buffer_bytes + 2 * len(body), opened.num_parts * _NS_PER_STRIP
    elif format == "AVIF":
        hidden = max(0, coded_pixels(body) - 2 * pixels)  # alpha is a separate picture
        extra_bytes, extra_ns = hidden * 8, hidden * 60
    elif format == "BMP" and opened.info.get("compression") in _RUN_LENGTHS:
        extra_bytes, extra_ns = pixels * 2, pixels * 150 + len(body) * 250
    return decoding_cost(format, opened.mode, opened.size, extra_bytes, extra_ns, is_bomb)


def machine_has(cost: Cost) -> bool:
    """Whether this process can still allocate the memory that a picture can take. If so, a MemoryError in a decoder was
    the picture's fault: Pillow also raises one for invalid sizes."""
    try:
        np.empty(int(cost.memory_bytes), np.uint8)
    except MemoryError:
        return False
    return True
