"""Finds the pairs whose pictures are most similar to a pair, a phrase or a picture, using `pipeline/search`."""

import threading
from dataclasses import dataclass

import numpy as np

from pairmill.pipeline.explore.start import Mask
from pairmill.pipeline.explore.view import View
from pairmill.pipeline.search.errors import SearchError
from pairmill.pipeline.search.index import SearchIndex
from pairmill.pipeline.search.query import QueryModel, embed_image, embed_text
from pairmill.pipeline.search.vector_index import Floats


@dataclass(frozen=True)
class Near:
    """One pair found by a search."""

    row: int
    similarity: float
    """Cosine similarity."""


class Searcher:
    """Searches the pictures of a view. Opens the embeddings of a model when they are first needed. Thread-safe."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._indexes: dict[str, SearchIndex] = {}
        self._lock = threading.Lock()

    def alias(self, wanted: str) -> str | None:
        """The model to search with: `wanted` if it has embeddings, else the first model that does. None if no model
        has embeddings."""
        return wanted if wanted in self._view.aliases else next(iter(self._view.aliases), None)

    def like_row(self, alias: str, row: int, k: int) -> list[Near]:
        """The pairs whose pictures are most similar to a pair's picture, except the pair itself. Raises SearchError."""
        index, ref = self._index(alias), self._view.lookup.ref(row)
        vector = index.embeddings.vector(ref.position, ref.row)
        if vector is None:
            raise SearchError(f"{alias} has no embedding of this picture")
        mask = self._view.start("pairs", None).copy()
        mask[row] = False
        return self._search(index, vector[None], k, mask)

    def like_text(self, alias: str, text: str, k: int) -> list[Near]:
        """The pairs whose pictures are most similar to a phrase. Raises SearchError and ModelError."""
        index = self._index(alias)
        vector = embed_text(QueryModel.load(index.embeddings.contract), text)
        return self._search(index, vector, k, self._view.start("pairs", None))

    def like_picture(self, alias: str, body: bytes, k: int) -> list[Near]:
        """The pairs whose pictures are most similar to an encoded picture. Raises SearchError and ModelError."""
        index = self._index(alias)
        max_pixels = self._view.snapshot.plan.job.images.max_pixels
        vector = embed_image(QueryModel.load(index.embeddings.contract), body, max_pixels)
        return self._search(index, vector, k, self._view.start("pairs", None))

    def _index(self, alias: str) -> SearchIndex:
        with self._lock:
            if alias not in self._indexes:
                snapshot = self._view.snapshot
                self._indexes[alias] = SearchIndex.open(snapshot.store, snapshot, alias)
            return self._indexes[alias]

    def _search(self, index: SearchIndex, vector: Floats, k: int, mask: Mask) -> list[Near]:
        """The k rows of the mask with the highest cosine, best first. `vector`: float32 [1, dim]."""
        rows, scores = (found[0] for found in index.search(vector, min(k, int(np.count_nonzero(mask))), mask))
        return [Near(int(row), float(score)) for row, score in zip(rows, scores, strict=True) if row >= 0]
