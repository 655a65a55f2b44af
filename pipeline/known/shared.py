"""Makes temporary files of known values that all workers of a select job can map into memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import IO
from uuid import uuid4

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.filters import collected, values_file
from pairmill.pipeline.known.keys import Mask, row_keys
from pairmill.pipeline.known.lookup import FilterId, Lookup
from pairmill.pipeline.known.node_copy import local_keys
from pairmill.schemas.known import KnownRows, KnownSource
from pairmill.schemas.manifest import DataFile


@dataclass(frozen=True)
class SharedKeys:
    """A temporary file of keys. Cheap to pickle: each process maps the file once."""

    store: Store
    which: FilterId
    values: int
    """Number of distinct values."""
    file: DataFile

    def contains(self, rows: pa.Table) -> Mask:
        """For each row, whether its value is known; False for null. Shape (rows,)."""
        keys, has_value = row_keys(self.which.kind, rows)
        found = np.zeros(len(has_value), np.bool_)
        found[has_value] = _open(self.which, local_keys(self.store, self.file)).contains(keys[has_value])
        return found


@contextmanager
def shared_keys(store: Store, known: KnownRows) -> Iterator[tuple[KnownSource, list[SharedKeys]]]:
    """Share the values of one source in files while the context lasts. `store`: the dataset whose rows are compared.

    Raises KnownError if the source cannot be used.
    """
    with ExitStack() as files, collected(store, [known], None) as found:
        keys = []
        for which, collector in found.collectors.items():
            file, num_values, digest, num_bytes = files.enter_context(values_file(store, collector))
            path = files.enter_context(shared_file(store, file))
            keys.append(SharedKeys(store, which, num_values, DataFile(path=path, num_bytes=num_bytes, blake2b=digest)))
        yield found.sources[0], keys


@contextmanager
def shared_file(store: Store, file: IO[bytes]) -> Iterator[str]:
    """The name by which workers read a `store.new_file()`: the file itself or, on S3, a temporary object."""
    if not store.remote:
        yield file.name.removeprefix(f"{store.root}/")
        return
    name = f"tmp/{uuid4().hex}"
    try:
        store.create_from(name, file)
        yield name
    finally:
        store.delete(name)


@lru_cache(maxsize=8)
def _open(which: FilterId, path: str) -> Lookup:
    return which.open(path)
