"""Makes temporary files of known values that all workers of a select job can map into memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import IO
from uuid import uuid4

import pyarrow as pa

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.filters import FilterId, collected, key_file
from pairmill.pipeline.known.key_file import KeyFile
from pairmill.pipeline.known.keys import Mask, lookup_keys
from pairmill.pipeline.known.node_copy import local_keys
from pairmill.schemas.known import KnownRows, KnownSource
from pairmill.schemas.manifest import DataFile


@dataclass(frozen=True)
class SharedKeys:
    """A temporary file of keys. Cheap to pickle: each process maps the file once."""

    store: Store
    which: FilterId
    values: int
    """Number of different values."""
    file: DataFile

    def contains(self, column: pa.ChunkedArray) -> Mask:
        """For each value of a column, whether it is known; False for null. Shape (rows,)."""
        keys, has_value = lookup_keys(self.which.kind, column)
        return self.which.contains(_open(local_keys(self.store, self.file)), keys) & has_value


@contextmanager
def shared_keys(store: Store, known: KnownRows) -> Iterator[tuple[KnownSource, list[SharedKeys]]]:
    """The values of one source, as long as the context lasts. `store`: the dataset whose rows are compared.

    Raises KnownError for a source that cannot be used.
    """
    with ExitStack() as files, collected(store, [known], None) as found:
        keys = []
        for which, sorter in found.sorters.items():
            file, num_keys, digest, num_bytes = files.enter_context(key_file(store, sorter))
            path = files.enter_context(shared_file(store, file))
            keys.append(SharedKeys(store, which, num_keys, DataFile(path=path, num_bytes=num_bytes, blake2b=digest)))
        yield found.sources[0], keys


@contextmanager
def shared_file(store: Store, file: IO[bytes]) -> Iterator[str]:
    """Name of a `store.new_file()` for workers: the file itself, or on S3 a temporary object."""
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
def _open(path: str) -> KeyFile:
    return KeyFile.open(path)
