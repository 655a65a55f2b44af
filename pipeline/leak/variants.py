"""Hashes an evaluation picture as others may have changed it: mirrored, cropped, or both.

A crop is found if it is near one of a grid of crops. Grids are as fine as the hash needs: between two neighbors, a
picture moves by 2.5 to 3.3 % of its side.
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
"""Crops are hashed from a copy of this size in pixels, which changes at most two of 64 bits."""

Luma = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


def is_plain(luma: Luma) -> bool:
    """Whether there is too little to see in a picture to tell its crops from those of others."""
    return pdq(luma).quality < MIN_QUALITY


def variant_hashes(luma: Luma, kind: LeakKind, variants: Sequence[Variant]) -> tuple[Words, npt.NDArray[np.int8]]:
    """The hashes of a brightness, uint8 [height, width]: (uint64 [hashes, words], the index in VARIANTS of each
    [hashes]). The first is that of the picture itself, exactly as a build computes it from these pixels."""
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
    """Without a crop, the hash by its definition; those of the crops all at once, because the transform is linear."""
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
            low[:, :, 1::2] *= -1  # the odd frequencies are those that a mirror changes
        yield from _bits(low)


def _bits(low: Floats) -> Words:
    """[hashes, 8, 8] -> [hashes, 1], as phash.py does it."""
    flat = np.round(low, 3).reshape(len(low), 64)
    ordered = np.sort(flat, axis=1)
    packed = np.packbits(flat > (ordered[:, 31:32] + ordered[:, 32:33]) / 2, axis=1)
    return packed.view(">u8").astype(np.uint64)


@lru_cache(maxsize=1024)
def _windows(length: int, share: float, offsets: int) -> Floats:
    """For each of some evenly spread windows of a side of `length` pixels, the transform to 8 frequencies: float64
    [offsets, 8, length]."""
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
