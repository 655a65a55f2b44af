"""Limits the number of reads of a file, because Pillow parses headers in Python, a few bytes at a time."""

from io import BytesIO

MAX_READS = 1_000_000
"""Maximum number of reads before the first pixel. Pillow needs two to five per segment; each read takes 0.3 µs
and up to 100 bytes."""


class TooManyReads(Exception):
    """The header has more parts than that of any real picture."""


class BoundedStream(BytesIO):
    """Raises TooManyReads after `MAX_READS` reads, until `unbound` is called.

    A JPEG of 20 MB can have five million segments, and a GIF four million comments, which took 660 MB of memory.
    """

    _reads_left: int | None = MAX_READS

    def read(self, size: int | None = -1) -> bytes:
        """Like BytesIO.read."""
        if self._reads_left is not None:
            self._reads_left -= 1
            if self._reads_left < 0:
                raise TooManyReads(f"more than {MAX_READS:,} parts in the header")
        return super().read(size)

    def unbound(self) -> None:
        """Lift the limit once the header has been read: by then, the cost of the pixels is known."""
        self._reads_left = None
