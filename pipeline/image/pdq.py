"""PDQ, a 256-bit perceptual hash that public hash lists use, and its quality.

Written from the published description: "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm",
Facebook 2019. Reduce the brightness to 64 x 64 with two box filters (Jarosz 2001), apply a two-dimensional DCT-II, and
for each of the 16 x 16 lowest frequencies except the constant ones, store whether it is above their median.

Two programs' hashes of the same picture differ in few bits if its quality is at least 80: for nearly all of 1,250
variants of photographs, the hash differed from pdqhash 0.2.8's in at most 10 bits, and for one variant in 18 bits.
Hashes of different pictures differ in about 128 bits. Up to 31 bits count as a match, and hashes with a quality below
50 are not comparable.
"""

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

BITS = 256
MATCH_DISTANCE = 31
"""ThreatExchange's threshold: pictures whose hashes differ in at most this many bits match."""
MIN_QUALITY = 50
"""ThreatExchange's threshold: the hashes of pictures below this quality are not compared."""

_SIDE, _LOW = 64, 16
_MIN_SIDE = 5
"""Smaller pictures have no meaningful hash: all bits are 0."""
_LARGE_SIDE = 2048
"""Sides of at least this many pixels are first reduced by a whole factor, which is faster. The description
allows this."""

# Rows 1 to 16 of the orthonormal DCT-II.
_FREQUENCIES, _SAMPLES = np.arange(1, _LOW + 1)[:, None], np.arange(_SIDE)[None, :]
_DCT: npt.NDArray[np.float64] = np.sqrt(2 / _SIDE) * np.cos(np.pi * _FREQUENCIES * (2 * _SAMPLES + 1) / (2 * _SIDE))

# Without rounding, the bits of flat pictures would be floating-point noise and differ between machines.
_DECIMALS = 3

Floats = npt.NDArray[np.float32]


class Pdq(NamedTuple):
    """The result of `pdq`."""

    digits: str
    """64 hex digits; the last bit is the lowest frequency."""
    quality: int
    """0 to 100: how much detail the picture has. Near 0 for plain pictures."""


def pdq(luma: npt.NDArray[np.uint8]) -> Pdq:
    """The hash of a picture, from its brightness (0.299 R + 0.587 G + 0.114 B): uint8 [height, width]."""
    height, width = luma.shape
    if min(height, width) < _MIN_SIDE:
        return Pdq("0" * (BITS // 4), 0)
    small = _reduced(luma)  # float32 [64, 64]
    by_row = np.einsum("ij,jk->ik", _DCT, small.astype(np.float64))  # [16, 64]; without BLAS, as in phash.py
    low = np.round(np.einsum("ij,kj->ik", by_row, _DCT), _DECIMALS)  # [16, 16]
    bits = low > np.partition(low, BITS // 2 - 1, axis=None)[BITS // 2 - 1]  # the lower of the two middle values
    digits = np.packbits(bits.ravel()[::-1]).tobytes().hex()
    return Pdq(digits, _quality(small))


def _reduced(luma: npt.NDArray[np.uint8]) -> Floats:
    """The means around 64 x 64 points: float32 [64, 64]."""
    height, width = luma.shape
    factors = [max(1, side // (_LARGE_SIDE // 2)) if side >= _LARGE_SIDE else 1 for side in (height, width)]
    if max(factors) > 1:
        size = (width // factors[1], height // factors[0])
        luma = np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.uint8)
    height, width = luma.shape
    window = (-(-width // (2 * _SIDE)), -(-height // (2 * _SIDE)))  # pixels, as OpenCV's (x, y)
    counts = _counts(height, window[1])[:, None] * _counts(width, window[0])
    filtered = luma
    for _ in range(2):
        anchor = ((window[0] - 1) // 2, (window[1] - 1) // 2)  # an even window reaches one pixel further to the right
        sums = cv2.boxFilter(
            filtered, cv2.CV_32F, window, anchor=anchor, normalize=False, borderType=cv2.BORDER_CONSTANT
        )
        filtered = np.asarray(sums) / counts
    rows, columns = (((np.arange(_SIDE) + 0.5) * side / _SIDE).astype(np.intp) for side in (height, width))
    return np.ascontiguousarray(filtered[rows[:, None], columns])


def _counts(length: int, window: int) -> Floats:
    """For each of `length` pixels, the number of its window's pixels that are inside the picture."""
    at = np.arange(length)
    first = at - (window - 1) // 2
    counts: Floats = (np.minimum(first + window, length) - np.maximum(first, 0)).astype(np.float32)
    return counts


def _quality(small: Floats) -> int:
    """The sum of the steps between neighbors, each truncated to whole percent of the range, divided by 90; at most
    100."""
    steps = sum(int(np.abs(np.trunc(np.diff(small, axis=axis) * np.float32(100 / 255))).sum()) for axis in (0, 1))
    return min(100, steps // 90)
