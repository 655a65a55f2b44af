"""Copies the parts of an index from S3 to a local cache, where they can be mapped into memory."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.search.errors import SearchError
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
        partial = copy.with_suffix(f".{uuid4().hex}.part")
        try:
            with partial.open("wb") as target, _opened(store, file) as source:
                shutil.copyfileobj(source, target, 1 << 24)
            if store.files.checksum(str(partial)) != (file.blake2b, file.num_bytes):
                raise SearchError(
                    f"{store.path(file.path)} has changed since it was written; delete the folder of this index and "
                    "run `pairmill index` again"
                )
            partial.replace(copy)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise SearchError(
            f"the index cannot be copied from {store.root} to {folder} ({error.strerror or error}); set XDG_CACHE_HOME "
            "to use another folder"
        ) from error
    return str(copy)


def _opened(store: Store, file: DataFile) -> IO[bytes]:
    try:
        return store.open(file.path)
    except FileNotFoundError:
        raise SearchError(f"{store.path(file.path)} is gone: run `pairmill index` again") from None


def check_size(store: Store, files: Iterable[DataFile]) -> None:
    """Raise SearchError if these files do not fit into the cache together."""
    num_bytes = sum(file.num_bytes for file in files)
    if store.remote and num_bytes > MAX_CACHE_BYTES:
        raise SearchError(
            f"the index has {num_bytes:,} bytes, but the local cache at most {MAX_CACHE_BYTES:,}: search a local copy "
            f"of {store.root}"
        )


def _make_room(folder: Path, num_bytes: int) -> None:
    """Delete the files that were not used for the longest time, until this many bytes fit.

    These may be copies that another process is using, which keeps them open, or that a killed one did not complete.
    """
    files = sorted(_files(folder))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total + num_bytes <= MAX_CACHE_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(time of the last use, size, path) of each file."""
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has just deleted it
            stat = path.stat()
            yield stat.st_mtime, stat.st_size, path


def forget_copy(file: DataFile) -> None:
    """Delete this machine's copy of a file of an index, if there is one."""
    with suppress(OSError):
        (cache_folder() / f"{file.blake2b}.faiss").unlink(missing_ok=True)
