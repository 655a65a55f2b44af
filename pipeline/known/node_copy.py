"""Provides a file of keys on this machine: the file itself or, for an object on S3, one copy per machine."""

from pairmill.pipeline.common.object_cache import ObjectError, cached_object
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.known_error import KnownError
from pairmill.schemas.manifest import DataFile

MAX_CACHE_BYTES = 100_000_000_000
"""Size of the cache: eleven filters of a billion values. The least recently used files are deleted first."""


def local_keys(store: Store, file: DataFile) -> str:
    """Path of a local file with these keys. Raises KnownError if the file is gone or cannot be copied."""
    if not store.remote:
        return store.path(file.path)
    try:
        return cached_object(store, file, "known", ".keys", MAX_CACHE_BYTES)
    except ObjectError as error:
        raise KnownError(f"{error}: restore it from a copy") from None
