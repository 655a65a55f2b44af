"""What decoding a picture costs, by its header: memory and CPU time, per decoder. What costs too much is a bomb.

The numbers were measured with 20-megapixel pictures of noise, of flat color, and drawn (docs/decisions/010).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

BYTES_PER_PIXEL = 8
"""A job's memory for one picture: this for each of `images.max_pixels`."""

MIN_MEMORY_BYTES = 256 << 20
"""A job that allows only small pictures still gives each of them this much."""

MAX_CPU_S = 5.0

_RGB_BYTES = 3
"""Per pixel, of the array that every picture ends in."""

_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Per pixel, in Pillow, by mode; 4 for all others."""

_LIBRARY_BYTES = {"WEBP": 20, "AVIF": 20}
"""Per pixel, all in all, where a library keeps pictures of its own beside Pillow's: libwebp two canvases and a frame,
libavif the planes and the interleaved picture."""

_ROW_BYTES = 64
"""Pillow keeps a pointer and at least four bytes per row."""

_COLUMN_BYTES = 32
"""Decoders keep two rows or more, of up to 8 bytes a pixel."""

_NS_PER_PIXEL = {"JPEG": 20, "PNG": 10, "GIF": 15, "BMP": 15, "TIFF": 40, "WEBP": 45, "AVIF": 110}
_NS_PER_ROW = 2_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What decoding takes at most."""

    memory_bytes: float
    cpu_s: float

    def excess(self, budget: "Cost") -> str | None:
        """Why this is more than the budget; None if it is not."""
        if self.memory_bytes > budget.memory_bytes:
            return f"decoding would take {self.memory_bytes / 1e6:,.0f} MB"
        if self.cpu_s > budget.cpu_s:
            return f"decoding would take {self.cpu_s:.0f} s"
        return None


def budget(max_pixels: int) -> Cost:
    """What one picture may cost in a job with this `images.max_pixels`."""
    return Cost(max(BYTES_PER_PIXEL * max_pixels, MIN_MEMORY_BYTES), MAX_CPU_S)


def decoding_cost(
    format: str, mode: str, size: tuple[int, int], *, extra_bytes: float = 0, extra_ns: float = 0
) -> Cost:
    """The cost of a picture of this format, Pillow mode and size (pixels). `extra_bytes` and `extra_ns` are what the
    file adds to the usual."""
    width, height = size
    pixel_bytes = _LIBRARY_BYTES.get(format) or _STORED_BYTES.get(mode, 4) + _RGB_BYTES
    memory_bytes = width * height * pixel_bytes + width * _COLUMN_BYTES + height * _ROW_BYTES + extra_bytes
    return Cost(memory_bytes, (width * height * _NS_PER_PIXEL[format] + height * _NS_PER_ROW + extra_ns) * 1e-9)


class MemoryGate:
    """Lets pictures be decoded at the same time as long as they fit into memory together. Thread-safe."""

    FREE_BYTES = 8 << 20
    """Pictures that take less do not queue."""

    def __init__(self, total_bytes: float) -> None:
        self._total = self._left = total_bytes
        self._changed = threading.Condition()

    @contextmanager
    def entry(self) -> Iterator[Callable[[float], None]]:
        """A function that waits until that many bytes are free, and takes them until the end of the block. Call it
        at most once: who holds some and waits for more could wait forever."""
        held = 0.0

        def reserve(num_bytes: float) -> None:
            nonlocal held
            if num_bytes <= self.FREE_BYTES:
                return
            wanted = min(num_bytes, self._total)
            with self._changed:
                self._changed.wait_for(lambda: wanted <= self._left)
                self._left -= wanted
            held = wanted

        try:
            yield reserve
        finally:
            if held:
                with self._changed:
                    self._left += held
                    self._changed.notify_all()


def machine_has(cost: Cost) -> bool:
    """Whether this process can still get the memory that a picture may take. If it can, a MemoryError in a decoder
    was the picture's fault: Pillow raises one for sizes too."""
    try:
        np.empty(int(cost.memory_bytes), np.uint8)
    except MemoryError:
        return False
    return True
