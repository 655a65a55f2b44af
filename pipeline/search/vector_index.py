"""THE place where faiss is called: an index of float16 vectors by inner product, small enough for one file.

The vectors are stored as they are, in lists of similar ones (an inverted file). A search reads only the most promising
lists, so it may miss a neighbour, but every score is exact. Few vectors have a single list, and their search is exact.
Why this kind of index: docs/decisions/017-search-index.md.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Ids = npt.NDArray[np.int64]
RowMask = npt.NDArray[np.bool_]

FAISS_VERSION: str = faiss.__version__

FLAT_ROWS = 100_000
"""Fewer vectors than this are not divided into lists: a search reads them all in a few milliseconds."""
_SAMPLES_PER_LIST = 64
_ITERATIONS = 10
_SEED = 0
_PROBED_SHARE = 3 / 16
"""Share of the lists that a search reads."""
_ADD_ROWS = 16_384
"""Vectors that are converted to float32 at a time."""


def num_lists(num_vectors: int) -> int:
    """Number of lists: 1 for few vectors, otherwise the power of two next to the square root."""
    return 1 if num_vectors < FLAT_ROWS else 1 << round(math.log2(math.sqrt(num_vectors)))


def sample_size(num_vectors: int) -> int:
    """How many vectors are enough to find the lists of this many."""
    lists = num_lists(num_vectors)
    return 0 if lists == 1 else _SAMPLES_PER_LIST * lists


class VectorIndex:
    """Vectors with ids, and a search by inner product. Searches are thread-safe."""

    def __init__(self, index: Any) -> None:
        """`index`: a faiss.IndexIVF."""
        self._index = index

    @classmethod
    def empty(cls, dim: int, num_vectors: int, sample: Halves) -> Self:
        """An index for at most `num_vectors` vectors. `sample` [n, dim]: `sample_size` of them or more, or else all.

        Equal samples give equal indexes.
        """
        lists = num_lists(num_vectors if len(sample) >= sample_size(num_vectors) else len(sample))
        centers = np.zeros((1, dim), np.float32) if lists == 1 else _centers(sample, lists)
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(centers)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
        quantizer.this.disown()
        index.own_fields = True
        index.is_trained = True
        return cls(index)

    @classmethod
    def read(cls, path: str) -> Self:
        """Open a file that `write` wrote, mapped into memory. Raises ValueError if it is not one."""
        try:
            index = faiss.read_index(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            raise ValueError(f"it is not an index of faiss {faiss.__version__}") from error
        if not isinstance(index, faiss.IndexIVFScalarQuantizer):
            raise ValueError("it is an index of another kind")
        lists = faiss.downcast_InvertedLists(index.invlists)
        if isinstance(lists, faiss.OnDiskInvertedLists):
            lists.prefetch_nthread = 0  # starting threads takes longer than a whole search
        return cls(index)

    def write(self, path: str) -> None:
        """Write the index to a file."""
        faiss.write_index(self._index, str(Path(path)))

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self._index.d)

    @property
    def lists(self) -> int:
        """Number of lists."""
        return int(self._index.nlist)

    def __len__(self) -> int:
        """Number of vectors."""
        return int(self._index.ntotal)

    def add(self, vectors: Halves, ids: Ids) -> None:
        """Add vectors, float16 [n, dim], with ids [n] >= 0."""
        for start in range(0, len(vectors), _ADD_ROWS):
            some = slice(start, start + _ADD_ROWS)
            self._index.add_with_ids(vectors[some].astype(np.float32), ids[some])

    def search(self, queries: Floats, k: int, allowed: RowMask | None = None) -> tuple[Ids, Floats]:
        """Ids and inner products of the k best vectors for each query, each [n, k], best first.

        `allowed`: by id, whether the vector may be found; None: all. With less than k vectors, the rest of the ids is
        -1. Of equal vectors of which not all are among the k best, any may be found; the same ones in every search.
        """
        lists, selector = math.ceil(self.lists * _PROBED_SHARE), None
        if allowed is not None:
            share = np.count_nonzero(allowed) / max(1, len(allowed))
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            lists = min(self.lists, math.ceil(lists / share)) if share else self.lists  # as many vectors as without
        ids, scores = self._search(queries, k, lists, selector)
        if lists < self.lists and (ids < 0).any():
            return self._search(queries, k, self.lists, selector)
        return ids, scores

    def stored(self) -> Iterator[Halves]:
        """The vectors as they are stored, float16 [n, dim] for each list."""
        lists = faiss.downcast_InvertedLists(self._index.invlists)
        for number in range(self.lists):
            size = lists.list_size(number)
            codes = (
                faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size) if size else np.zeros(0, np.uint8)
            )
            yield codes.copy().view(np.float16).reshape(size, self.dim)

    def _search(self, queries: Floats, k: int, lists: int, selector: Any) -> tuple[Ids, Floats]:
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=lists)
        scores, ids = self._index.search(np.ascontiguousarray(queries, np.float32), k, params=parameters)
        return ids, scores


def _centers(sample: Halves, lists: int) -> Floats:
    """The centers of `lists` groups, float32 [lists, dim]."""
    kmeans = faiss.Kmeans(
        sample.shape[1], lists, niter=_ITERATIONS, seed=_SEED, spherical=True,
        max_points_per_centroid=_SAMPLES_PER_LIST, min_points_per_centroid=1,
    )  # fmt: skip
    kmeans.train(sample.astype(np.float32))
    centers: Floats = kmeans.centroids
    return centers
