"""Copies the parts of an index from S3 to a local cache, where they can be mapped into memory."""

from collections.abc import Iterable
from contextlib import suppress

from pairmill.pipeline.common.object_cache import ObjectCacheError, ObjectError, cache_folder, cached_object
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.search.errors import SearchError
from pairmill.schemas.manifest import DataFile

MAX_CACHE_BYTES = 20_000_000_000
"""Maximum size of the cache. The least recently used files are deleted first."""


def local_copy(store: Store, file: DataFile) -> str:
    """The path of an index file on this machine: the file itself, or a copy of an object. Raises SearchError."""
    if not store.remote:
        return store.path(file.path)
    try:
        return cached_object(store, file, "index", ".faiss", MAX_CACHE_BYTES)
    except ObjectError as error:
        raise SearchError(f"{error}; delete the folder of this index and run `pairmill index` again") from None
    except ObjectCacheError as error:
        raise SearchError(str(error)) from error


def check_size(store: Store, files: Iterable[DataFile]) -> None:
    """Raise SearchError if these files do not fit into the cache together."""
    num_bytes = sum(file.num_bytes for file in files)
    if store.remote and num_bytes > MAX_CACHE_BYTES:
        raise SearchError(
            f"the index has {num_bytes:,} bytes, but the local cache can store at most {MAX_CACHE_BYTES:,}: search a "
            f"local copy of {store.root}"
        )


def forget_copy(file: DataFile) -> None:
    """Delete this machine's copy of an index file, if there is one."""
    with suppress(OSError):
        (cache_folder("index") / f"{file.blake2b}.faiss").unlink(missing_ok=True)
