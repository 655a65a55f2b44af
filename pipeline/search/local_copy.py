"""Copies the parts of an index from S3 to a local cache, where they can be mapped into memory."""

import os
import shutil
from pathlib import Path

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.search.embeddings import SearchError
from pairmill.schemas.manifest import DataFile

MAX_CACHE_BYTES = 20_000_000_000
"""Size of the cache. The files that were not used for the longest time are deleted first."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/pairmill/index`, by default below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "pairmill", "index")


def local_copy(store: Store, file: DataFile) -> str:
    """Path of a file of the index on this machine: the file itself, or a copy of an object. Raises SearchError."""
    if not store.remote:
        return store.path(file.path)
    folder = cache_folder()
    copy = folder / f"{file.blake2b}.faiss"
    try:
        if copy.is_file() and copy.stat().st_size == file.num_bytes:
            os.utime(copy)
            return str(copy)
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder, file.num_bytes)
        partial = copy.with_suffix(f".{os.getpid()}.part")
        try:
            with store.open(file.path) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 24)
            if store.files.checksum(str(partial)) != (file.blake2b, file.num_bytes):
                raise SearchError(
                    f"{store.path(file.path)} has changed since it was written; run `pairmill index` again"
                )
            partial.replace(copy)
        finally:
            partial.unlink(missing_ok=True)
    except FileNotFoundError:
        raise SearchError(f"{store.path(file.path)} is gone; run `pairmill index` again") from None
    except OSError as error:
        if isinstance(error, SearchError):
            raise
        raise SearchError(
            f"the index cannot be copied to {folder} ({error.strerror or error}); set XDG_CACHE_HOME to another folder"
        ) from error
    return str(copy)


def _make_room(folder: Path, num_bytes: int) -> None:
    """Delete the files that were not used for the longest time, until this many bytes fit. Raises SearchError."""
    if num_bytes > MAX_CACHE_BYTES:
        raise SearchError(
            f"one part of the index has {num_bytes:,} bytes, but the cache is limited to {MAX_CACHE_BYTES:,}"
        )
    files = sorted((each.stat().st_mtime, each.stat().st_size, each) for each in folder.glob("*.faiss"))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total + num_bytes <= MAX_CACHE_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size
