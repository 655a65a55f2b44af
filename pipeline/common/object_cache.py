"""Keeps copies of objects on S3 on the local disk, where all processes of a machine can map them into memory."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from pairmill.pipeline.common.storage import Store
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.manifest import DataFile


class ObjectError(PairmillError, ValueError):
    """An object is gone, or is not what its record says; the message names it."""

    kind = FailureKind.JOB


class ObjectCacheError(PairmillError, OSError):
    """An object cannot be copied to this machine; the message says what to do."""

    kind = FailureKind.MACHINE


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/pairmill/NAME`, by default below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "pairmill", name)


def cached_object(store: Store, file: DataFile, name: str, ending: str, max_bytes: int) -> str:
    """Path of a local copy of an object. Processes that want the same one wait for the first to copy it.

    `name`: folder of the cache, of at most `max_bytes`: the copies that were not used for the longest time are deleted
    first. Raises ObjectError, and ObjectCacheError if the disk is full or may not be written.
    """
    folder = cache_folder(name)
    copy = folder / f"{file.blake2b}{ending}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / file.blake2b):
            if not (copy.is_file() and copy.stat().st_size == file.num_bytes):
                _make_room(folder, file.num_bytes, max_bytes)
                _copy(store, file, copy)
            os.utime(copy)
    except OSError as error:
        raise ObjectCacheError(
            f"{file.path} cannot be copied from {store.root} to {folder} ({error.strerror or error}); set "
            "XDG_CACHE_HOME to use another folder"
        ) from error
    return str(copy)


def _copy(store: Store, file: DataFile, copy: Path) -> None:
    partial = copy.with_suffix(f".{uuid4().hex}.part")
    try:
        with _opened(store, file) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
        if store.files.checksum(str(partial)) != (file.blake2b, file.num_bytes):
            raise ObjectError(f"{store.path(file.path)} has changed since it was written")
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)


def _opened(store: Store, file: DataFile) -> IO[bytes]:
    try:
        return store.open(file.path)
    except FileNotFoundError:
        raise ObjectError(f"{store.path(file.path)} is gone") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which ends with the process."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_room(folder: Path, num_bytes: int, max_bytes: int) -> None:
    """Delete the copies that were not used for the longest time, until this many bytes fit.

    Another process may be using one, which keeps it open, or may have been killed before it completed one.
    """
    files = sorted(_files(folder))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total + num_bytes <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(time of the last use, size, path) of each file, without locks."""
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has just deleted it
            if path.suffix:
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path
