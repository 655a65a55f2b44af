"""A small language model of a dataset's own captions: byte 4-grams with Witten-Bell smoothing.

It needs no data besides the dataset. A high value means that a caption is unlike most others, for example because it
is in a different language, a product code, or a list of keywords. UTF-8 bytes work for every script.

Smoothing, for a byte c after a context h that was seen n(h) times, followed by T(h) distinct bytes (Witten and Bell
1991, "The zero-frequency problem", in the interpolated form of Chen and Goodman 1998, section 2.4):

    P(c | h) = (n(hc) + T(h) P(c | h without its first byte)) / (n(h) + T(h));    for an empty h, the inner P is 1/256
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ORDER = 4
"""Length of an n-gram in bytes: 3 bytes of context and the next byte."""
SAMPLE_ROWS, SAMPLE_BYTES = 20_000, 500
"""The model is built from about this many captions, and from this many leading bytes of each: 10 MB of text at most."""
_BLOCK_BYTES = 1 << 20
"""Approximate size of the blocks in which captions are measured. A block needs 50 times as much memory."""

Keys = npt.NDArray[np.uint32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ByteModel:
    """Counts of n-grams. The same captions in any order give the same model."""

    tensors: Mapping[str, npt.NDArray[np.generic]]
    """For n = 1 to ORDER: `keys.n` (uint32 [n-grams], ascending; the n bytes as one number) and `counts.n` (uint32)."""

    @classmethod
    def of(cls, captions: pa.Array) -> "ByteModel":
        """Count the n-grams of captions. NUL bytes are prepended to each caption."""
        keys, _ = _grams(captions)
        tensors: dict[str, npt.NDArray[np.generic]] = {}
        for order in range(1, ORDER + 1):
            distinct, counts = np.unique(keys & _mask(order), return_counts=True)
            tensors |= {f"keys.{order}": distinct, f"counts.{order}": counts.astype(np.uint32)}
        return cls(tensors)

    def bits(self, captions: pa.Array) -> Doubles:
        """-log2 of the probability of each caption, float64 [captions]; 0 for an empty or null caption."""
        sizes = np.diff(_offsets(captions))
        edges = np.cumsum(sizes) // _BLOCK_BYTES  # the block of each caption
        starts = [0, *(np.flatnonzero(np.diff(edges)) + 1).tolist(), len(sizes)]
        blocks = [captions.slice(start, end - start) for start, end in pairwise(starts)]
        return np.concatenate([np.zeros(0), *(self._bits(block) for block in blocks)])

    def _bits(self, captions: pa.Array) -> Doubles:
        keys, sizes = _grams(captions)
        probability = np.full(len(keys), 1 / 256)
        for order in range(1, ORDER + 1):
            in_context, kinds = self._contexts(order, keys >> np.uint32(8) & _mask(order - 1))
            found = self._counts(order, keys & _mask(order))
            seen = in_context > 0
            total = np.where(seen, in_context + kinds, 1)
            probability = np.where(seen, (found + kinds * probability) / total, probability)
        sums = np.concatenate([np.zeros(1), np.cumsum(-np.log2(probability))])
        ends = np.cumsum(sizes)
        result: Doubles = sums[ends] - sums[ends - sizes]
        return result

    def _counts(self, order: int, keys: Keys) -> Doubles:
        known, counts = self.tensors[f"keys.{order}"], self.tensors[f"counts.{order}"]
        if not len(known):
            return np.zeros(len(keys))
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[place] == keys, counts[place], 0).astype(np.float64)

    def _contexts(self, order: int, contexts: Keys) -> tuple[Doubles, Doubles]:
        """(n(h), T(h)) of each context h of `order - 1` bytes."""
        known = self.tensors[f"keys.{order}"].astype(np.uint32) >> np.uint32(8)
        sums = np.concatenate([np.zeros(1), np.cumsum(self.tensors[f"counts.{order}"], dtype=np.float64)])
        first, last = np.searchsorted(known, contexts, "left"), np.searchsorted(known, contexts, "right")
        return sums[last] - sums[first], (last - first).astype(np.float64)


def _grams(captions: pa.Array) -> tuple[Keys, npt.NDArray[np.int64]]:
    """(n-gram of ORDER bytes that ends at each byte, uint32 [bytes]; number of bytes of each caption [captions])."""
    offsets = _offsets(captions)
    sizes = np.diff(offsets)
    data = captions.buffers()[2]
    text = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    before = ORDER - 1
    caption = np.repeat(np.arange(len(sizes)), sizes)  # [bytes]
    place = np.arange(len(text)) + before * (caption + 1)
    spaced = np.zeros(len(text) + before * (len(sizes) + 1), np.uint8)
    spaced[place] = text
    keys = np.zeros(len(text), np.uint32)
    for back in range(before, -1, -1):
        keys = keys << np.uint32(8) | spaced[place - back]
    return keys, sizes


def _offsets(captions: pa.Array) -> npt.NDArray[np.int64]:
    """Where each caption's bytes start, and where all bytes end, [captions + 1]. Null captions must be empty."""
    if not len(captions):
        return np.zeros(1, np.int64)
    buffer = captions.buffers()[1]
    return np.frombuffer(buffer, np.int32)[captions.offset : captions.offset + len(captions) + 1].astype(np.int64)


def _mask(order: int) -> np.uint32:
    return np.uint32(256**order - 1)
