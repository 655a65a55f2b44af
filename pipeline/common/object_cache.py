"""Keeps copies of S3 objects on the local disk, where all processes of a machine can map them into memory."""

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
    """An object is missing or differs from its record. The message names the object."""

    kind = FailureKind.JOB


class ObjectCacheError(PairmillError, OSError):
    """An object cannot be copied to this machine. The message says what to do."""

    kind = FailureKind.MACHINE


def cache_folder(name: str) -> Path:
    """The folder `$XDG_CACHE_HOME/pairmill/NAME`. By default, XDG_CACHE_HOME is `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "pairmill", name)


def cached_object(store: Store, file: DataFile, name: str, ending: str, max_bytes: int) -> str:
    """Path of a local copy of an object. If several processes need the same object, one copies it and the others wait.

    `name`: folder of the cache. The least recently used copies are deleted to keep the folder within `max_bytes`.
    Raises ObjectError if the object is missing or has changed, and ObjectCacheError if the disk is full or not
    writable.
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
        raise ObjectError(f"{store.path(file.path)} is missing") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock for the duration of the block. The lock is released if the process ends."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_room(folder: Path, num_bytes: int, max_bytes: int) -> None:
    """Delete the least recently used copies until this many bytes fit.

    A process that has a deleted copy open can still read it. Incomplete copies left by killed processes are deleted in
    the same way.
    """
    files = sorted(_files(folder))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total + num_bytes <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(time of last use, size, path) of each file, except lock files."""
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has just deleted it
            if path.suffix:
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path
