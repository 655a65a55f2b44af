"""A file that a parser may not read forever: Pillow parses headers in Python, a few bytes at a time."""

from io import BytesIO

MAX_READS = 1_000_000
"""Before the first pixel. Pillow's readers take two to five a segment, and 0.3 µs and up to 100 bytes for each."""


class TooManyReads(Exception):
    """A header of so many parts is no picture's."""


class BoundedStream(BytesIO):
    """Raises TooManyReads for more than `MAX_READS` reads, until `unbound`.

    A JPEG of 20 MB can have five million segments, and a GIF four million comments, which took 660 MB.
    """

    _reads_left: int | None = MAX_READS

    def read(self, size: int | None = -1) -> bytes:
        """As BytesIO."""
        if self._reads_left is not None:
            self._reads_left -= 1
            if self._reads_left < 0:
                raise TooManyReads(f"a header of more than {MAX_READS:,} parts")
        return super().read(size)

    def unbound(self) -> None:
        """The header is read: what follows are pixels, whose cost is known."""
        self._reads_left = None
