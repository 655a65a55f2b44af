"""Shares entries with the workers in temporary files, and compares rows with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.embeddings import near_vectors, read_vectors
from pairmill.pipeline.known.hash_index import HashIndex
from pairmill.pipeline.known.keys import row_keys
from pairmill.pipeline.known.node_copy import local_keys
from pairmill.pipeline.known.shared import shared_file
from pairmill.pipeline.leak.evaluation_set import Entries, hash_entry, vector_entry
from pairmill.schemas.leak import LeakKind
from pairmill.schemas.manifest import DataFile

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SharedEntries:
    """A temporary file of Entries of one kind. Cheap to pickle: each process opens the file once."""

    store: Store
    by: LeakKind
    column: str
    limit: float
    """The greatest distance in bits, or the lowest cosine, that counts as near."""
    width: int
    """Number of words of a hash, or of dimensions of an embedding."""
    file: DataFile

    def pairs(self, rows: pa.Table) -> Iterator[tuple[Indices, Entries, npt.NDArray[np.float64]]]:
        """All pairs of a row and an entry near it, in parts: (row indices, entries, nearness). The nearness is the
        distance in bits or the negative cosine: lower is nearer. A pair can occur more than once."""
        path = local_keys(self.store, self.file)
        if self.by == "embedding":
            entries = _read(path, vector_entry(self.width))
            vectors, usable = read_vectors(rows[self.column])
            for asking, listed, cosines in near_vectors(vectors[usable], entries["value"], self.limit):
                yield np.flatnonzero(usable)[asking], entries[listed], -cosines
            return
        index, entries = _index(path, self.width, int(self.limit))
        keys, has_value = row_keys(self.by, rows)
        for asking, listed, bits in index.near_pairs(keys[has_value].reshape(-1, self.width)):
            yield np.flatnonzero(has_value)[asking], entries[listed], bits.astype(np.float64)


@contextmanager
def shared_entries(store: Store, by: LeakKind, column: str, limit: float, entries: Entries) -> Iterator[SharedEntries]:
    """Share entries in a file while the context lasts. `store`: the dataset whose rows are compared."""
    width = entries.dtype["value"].shape[0]
    with store.new_file() as file:
        file.write(entries.tobytes())
        file.flush()
        digest, num_bytes = file_checksum(file)
        with shared_file(store, file) as path:
            data_file = DataFile(path=path, num_bytes=num_bytes, blake2b=digest)
            yield SharedEntries(store, by, column, limit, width, data_file)


@lru_cache(maxsize=1)
def _read(path: str, dtype: np.dtype[np.void]) -> Entries:
    return np.fromfile(path, dtype)


@lru_cache(maxsize=1)
def _index(path: str, width: int, distance: int) -> tuple[HashIndex, Entries]:
    entries = _read(path, hash_entry(width))
    return HashIndex.of(np.ascontiguousarray(entries["value"]), distance), entries
