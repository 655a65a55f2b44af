"""THE place where faiss is called: an inner-product index of float16 vectors, small enough for one file.

The vectors are stored unchanged, in lists of similar vectors (an inverted file). A search reads only the most promising
lists, so it can miss a neighbor, but every score is exact. A small index has a single list, so its searches find every
neighbor. docs/decisions/017-search-index.md explains why this kind of index was chosen.
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
"""Fewer vectors than this are not divided into lists: a search reads all of them in a few milliseconds."""
_SAMPLES_PER_LIST = 64
_ITERATIONS = 10
_SEED = 0
_PROBED_SHARE = 3 / 16
"""The share of the lists that a search for a few vectors reads."""
_ADD_ROWS = 16_384
"""Number of vectors that are converted to float32 at a time."""


def num_lists(num_vectors: int) -> int:
    """The number of lists: 1 for few vectors, otherwise the power of two that is nearest to the square root."""
    return 1 if num_vectors < FLAT_ROWS else 1 << round(math.log2(math.sqrt(num_vectors)))


def sample_size(num_vectors: int) -> int:
    """The number of sample vectors that are enough to find the lists for `num_vectors`."""
    lists = num_lists(num_vectors)
    return 0 if lists == 1 else _SAMPLES_PER_LIST * lists


class VectorIndex:
    """Vectors with ids, and a search by inner product. Searches are thread-safe."""

    def __init__(self, index: Any) -> None:
        """`index`: a faiss.IndexIVF."""
        self._index = index

    @classmethod
    def empty(cls, dim: int, num_vectors: int, sample: Halves) -> Self:
        """An empty index for at most `num_vectors` vectors. `sample` [n, dim]: at least `sample_size` of them, or all
        if there are fewer.

        Equal samples produce equal indexes.
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
        """Open a file that `write` wrote, mapped into memory. Raises ValueError if it is not such a file."""
        try:
            index = faiss.read_index(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            raise ValueError(f"faiss {faiss.__version__} cannot read it") from error
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
        """The length of each vector."""
        return int(self._index.d)

    @property
    def lists(self) -> int:
        """The number of lists."""
        return int(self._index.nlist)

    def __len__(self) -> int:
        """The number of vectors."""
        return int(self._index.ntotal)

    def add(self, vectors: Halves, ids: Ids) -> None:
        """Add vectors, float16 [n, dim], with ids [n] >= 0."""
        for start in range(0, len(vectors), _ADD_ROWS):
            some = slice(start, start + _ADD_ROWS)
            self._index.add_with_ids(vectors[some].astype(np.float32), ids[some])

    def search(self, queries: Floats, k: int, allowed: RowMask | None = None) -> tuple[Ids, Floats]:
        """(ids, inner products) of the k best vectors for each query, each [n, k], best first.

        `allowed`: whether each vector can be found, by id; None for all. If fewer than k vectors are found, the
        remaining ids are -1. If only some of several equal vectors are among the k best, it is undefined which, but
        every search finds the same ones.
        """
        share, selector = 1.0, None
        if allowed is not None:
            share = np.count_nonzero(allowed) / max(1, len(allowed))
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        lists = self._num_probed(k, share)
        ids, scores = self._search(queries, k, lists, selector)
        if lists < self.lists and (ids < 0).any():
            return self._search(queries, k, self.lists, selector)
        return ids, scores

    def stored(self) -> Iterator[Halves]:
        """The stored vectors: float16 [n, dim] for each list."""
        lists = faiss.downcast_InvertedLists(self._index.invlists)
        for number in range(self.lists):
            size = lists.list_size(number)
            codes = (
                faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size) if size else np.zeros(0, np.uint8)
            )
            yield codes.copy().view(np.float16).reshape(size, self.dim)

    def _num_probed(self, k: int, share: float) -> int:
        """The number of lists to read for the k best vectors, among a share of all vectors.

        The more vectors, the more lists they are spread over. With a share, more lists are read, so that as many of its
        vectors are read as in an index that contains nothing else.
        """
        if not share or not len(self):
            return self.lists
        probed = _PROBED_SHARE + math.sqrt(k / (share * len(self)))
        return min(self.lists, math.ceil(self.lists * probed / share))

    def _search(self, queries: Floats, k: int, lists: int, selector: Any) -> tuple[Ids, Floats]:
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=lists)
        scores, ids = self._index.search(np.ascontiguousarray(queries, np.float32), k, params=parameters)
        return ids, scores


def _centers(sample: Halves, lists: int) -> Floats:
    """The centers of `lists` groups of similar vectors: float32 [lists, dim]."""
    kmeans = faiss.Kmeans(
        sample.shape[1], lists, niter=_ITERATIONS, seed=_SEED, spherical=True,
        max_points_per_centroid=_SAMPLES_PER_LIST, min_points_per_centroid=1,
    )  # fmt: skip
    kmeans.train(sample.astype(np.float32))
    centers: Floats = kmeans.centroids
    return centers
