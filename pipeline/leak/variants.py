"""Hashes an evaluation picture in the variants in which it may appear elsewhere: mirrored, cropped, or both.

A crop is found if it is near one crop of a grid. The grids are as fine as the hashes need: two neighboring crops are
2.5 to 3.3 % of the picture's side apart.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from pairmill.pipeline.image.pdq import MIN_QUALITY, pdq
from pairmill.pipeline.image.phash import low_frequencies_basis, phash_of_luma
from pairmill.schemas.leak import LeakKind, Variant

CROPS = ((0.95, 3), (0.9, 5), (0.85, 6), (0.8, 7))
"""(share of each side, offsets along each side). Chosen with `python -m bench.leak`."""
VARIANTS: Sequence[Variant] = ("same", "mirrored", "cropped", "mirrored_cropped")
HASH_WORDS: dict[LeakKind, int] = {"sha256": 1, "phash": 1, "pdq": 4}

_MAX_SIDE = 256
"""Crops are hashed from a copy with at most this many pixels per side, which changes at most two of 64 bits."""

Luma = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


def is_plain(luma: Luma) -> bool:
    """Whether a picture is too plain to tell its crops from those of other pictures."""
    return pdq(luma).quality < MIN_QUALITY


def variant_hashes(luma: Luma, kind: LeakKind, variants: Sequence[Variant]) -> tuple[Words, npt.NDArray[np.int8]]:
    """The hashes of a picture's brightness, uint8 [height, width]: (uint64 [hashes, words], index in VARIANTS of each
    hash [hashes]). The first hash is that of the picture itself, exactly as a build computes it from these pixels."""
    hashes = _phashes if kind == "phash" else _pdqs
    found = [(words, VARIANTS.index(variant)) for variant in variants for words in hashes(luma, variant)]
    codes = np.array([code for _, code in found], np.int8)
    return np.stack([words for words, _ in found]), codes


def _pdqs(luma: Luma, variant: Variant) -> Iterator[Words]:
    if "mirrored" in variant:
        luma = np.ascontiguousarray(luma[:, ::-1])
    for each in _crops(_small(luma, 2 * _MAX_SIDE)) if "cropped" in variant else [luma]:
        found = pdq(each)
        if found.quality >= MIN_QUALITY:
            yield np.frombuffer(bytes.fromhex(found.digits), ">u8").astype(np.uint64)


def _phashes(luma: Luma, variant: Variant) -> Iterator[Words]:
    """The hashes of one variant. Hashes of crops are computed all at once, which works because the transform is linear;
    without crops, the hash is computed by its definition."""
    if "cropped" not in variant:
        pixels = np.ascontiguousarray(luma[:, ::-1]) if variant == "mirrored" else luma
        yield np.array([int(phash_of_luma(pixels), 16)], np.uint64)
        return
    small = _small(luma, _MAX_SIDE).astype(np.float64)
    for share, offsets in CROPS:
        by_row = _windows(small.shape[0], share, offsets) @ small  # [offsets, 8, width]
        columns = _windows(small.shape[1], share, offsets)  # [offsets, 8, width]
        low = np.einsum("yaw,xbw->yxab", by_row, columns, optimize=True).reshape(-1, 8, 8)
        if variant == "mirrored_cropped":
            low[:, :, 1::2] *= -1  # mirroring changes the sign of the odd frequencies
        yield from _bits(low)


def _bits(low: Floats) -> Words:
    """The hashes [hashes, 1] of low frequencies [hashes, 8, 8], computed as in phash.py."""
    flat = np.round(low, 3).reshape(len(low), 64)
    ordered = np.sort(flat, axis=1)
    packed = np.packbits(flat > (ordered[:, 31:32] + ordered[:, 32:33]) / 2, axis=1)
    return packed.view(">u8").astype(np.uint64)


@lru_cache(maxsize=1024)
def _windows(length: int, share: float, offsets: int) -> Floats:
    """The transforms to 8 frequencies for evenly spaced windows of a side with `length` pixels: float64 [offsets, 8,
    length]."""
    size = share * length
    return np.stack([low_frequencies_basis(length, at, size) for at in np.linspace(0, length - size, offsets)])


def _small(luma: Luma, side: int) -> Luma:
    """A copy whose sides are at most `side` pixels."""
    height, width = luma.shape
    if max(height, width) <= side:
        return luma
    size = (max(1, round(width * side / max(luma.shape))), max(1, round(height * side / max(luma.shape))))
    return np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.uint8)


def _crops(luma: Luma) -> Iterator[Luma]:
    height, width = luma.shape
    for share, offsets in CROPS:
        tall, wide = max(1, round(share * height)), max(1, round(share * width))
        for top in np.linspace(0, height - tall, offsets).round().astype(int).tolist():
            for left in np.linspace(0, width - wide, offsets).round().astype(int).tolist():
                yield np.ascontiguousarray(luma[top : top + tall, left : left + wide])
