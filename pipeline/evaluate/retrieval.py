"""Measures retrieval: how often a caption finds its picture among all pictures, and a picture finds one of its captions
among all captions.

R@k is the share of queries with at least one match among the k most similar items, as in the Karpathy tests of
Flickr8k, Flickr30k and COCO. The rank of the best match is 1 + the number of other items that are more similar; other
items that are exactly as similar are counted separately.

Similarities are exact. Vectors are L2-normalized and rounded to multiples of 2**-24. Each product is then a multiple of
2**-48, and each partial sum is at most about 1; float64 represents both exactly. So the result depends neither on the
tiles nor on the order of rows, and equal vectors tie.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.reader.embeddings import Halves

Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

TOP = (1, 5, 10)
QUERY_ROWS, GALLERY_ROWS = 2_048, 4_096
"""Rows and columns of a tile of similarities: 64 MiB."""
_GRID = 2.0**24


@dataclass(frozen=True)
class RetrievalSet:
    """Pictures with their captions."""

    pictures: Halves
    """Embeddings [pictures, dim]; every picture has a caption."""
    captions: Halves
    """Embeddings [captions, dim]."""
    picture_of: Counts
    """The index of each caption's picture [captions]."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of the queries' best matches."""

    better: Counts
    """Number of other items that are more similar than the best match [queries]."""
    equal: Counts
    """Number of other items that are exactly as similar as the best match [queries]."""

    def recall_at(self, k: int) -> float:
        """Share of queries whose best match is among the k most similar. A tie counts in favor of the match."""
        return float((self.better < k).mean())

    @property
    def median_rank(self) -> float:
        """Median rank of the best match; 1 is the best rank."""
        return float(np.median(self.better) + 1)

    @property
    def tied(self) -> int:
        """Number of queries with other items that are exactly as similar as the best match."""
        return int((self.equal > 0).sum())


def text_to_picture(
    data: RetrievalSet, tile: tuple[int, int] = (QUERY_ROWS, GALLERY_ROWS), on_step: OnStep = ignore_step
) -> Ranks:
    """The rank of each caption's picture among all pictures."""
    own = own_similarities(data)
    return _ranks(data.captions, data.pictures, own, np.ones(len(own), np.int64), tile, on_step)


def picture_to_text(
    data: RetrievalSet, tile: tuple[int, int] = (QUERY_ROWS, GALLERY_ROWS), on_step: OnStep = ignore_step
) -> Ranks:
    """The rank of the best of each picture's captions among all captions."""
    own = own_similarities(data)
    best = np.full(len(data.pictures), -np.inf)
    np.maximum.at(best, data.picture_of, own)
    matches = np.bincount(data.picture_of, weights=own == best[data.picture_of], minlength=len(best)).astype(np.int64)
    return _ranks(data.pictures, data.captions, best, matches, tile, on_step)


def own_similarities(data: RetrievalSet) -> Doubles:
    """The similarity of each caption and its picture [captions]."""
    found = np.empty(len(data.captions))
    for start in range(0, len(found), QUERY_ROWS):
        rows = slice(start, start + QUERY_ROWS)
        pictures = unit(data.pictures[data.picture_of[rows]])
        found[rows] = (unit(data.captions[rows]) * pictures).sum(axis=1)
    return found


def unit(vectors: Halves) -> Doubles:
    """Vectors, float16 [n, dim], as float64 [n, dim], L2-normalized and rounded to multiples of 2**-24."""
    made = vectors.astype(np.float64)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    rounded: Doubles = np.rint(made * _GRID) / _GRID
    return rounded


def _ranks(
    queries: Halves, gallery: Halves, best: Doubles, matches: Counts, tile: tuple[int, int], on_step: OnStep
) -> Ranks:
    """The ranks of `queries` in `gallery`. `best` [queries]: similarity of the best match; `matches` [queries]: number
    of matches with this similarity."""
    better, equal = np.zeros(len(queries), np.int64), -matches
    for start in range(0, len(queries), tile[0]):
        rows = slice(start, start + tile[0])
        on_step("comparing", start, len(queries))
        vectors, limit = unit(queries[rows]), best[rows, None]
        for first in range(0, len(gallery), tile[1]):
            similarities = (
                vectors @ unit(gallery[first : first + tile[1]]).T
            )  # [queries of the tile, gallery of the tile]
            better[rows] += np.count_nonzero(similarities > limit, axis=1)
            equal[rows] += np.count_nonzero(similarities == limit, axis=1)
    return Ranks(better, equal)
