"""Detects files that have changed since they were committed, through bad disks, broken copies or manual edits.

Parquet pages carry checksums, which every read verifies. Footers and page headers have none, so `export` and
PairDataset compare a local file with the checksum in its manifest when they first read it. A repeated export does the
same with the files that it finds. Objects on S3 have their own checksums.
"""

import zlib
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from pairmill.pipeline.common.files import Files, refusing_folders
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.manifest import DataFile


class DamagedFileError(PairmillError, pa.ArrowInvalid):  # type: ignore[misc]
    """A file differs from what was written. The message names the file and says what to do."""

    kind = FailureKind.INPUT


class MissingFileError(PairmillError, FileNotFoundError):
    """A file of the dataset does not exist. The message names the file and says what to do."""

    kind = FailureKind.SHARD

    @classmethod
    def of(cls, store: Store, name: str) -> "MissingFileError":
        """The error for a file that another command may have just replaced, or that is lost."""
        return cls(
            f"{store.path(name)} is missing; if no other command has just changed {store.root}, run "
            f"`{pairmill_command('verify', store.root)}` to see what else is missing and what to do"
        )


def check_file(store: Store, name: str, blake2b: str) -> None:
    """Raise DamagedFileError if a local file does not match its checksum, or MissingFileError. Repeated calls cost
    nothing unless the file was modified in between."""
    if store.remote:
        return
    path = store.path(name)
    try:
        info = Path(path).stat()
    except FileNotFoundError:
        raise MissingFileError.of(store, name) from None
    if _digest(path, info.st_size, info.st_mtime_ns, info.st_ino) != blake2b:
        raise DamagedFileError(
            f"{path} has changed since it was committed: its checksum differs; run "
            f"`{pairmill_command('verify', store.root)}` to see what else has changed and what to do"
        )


def is_unchanged(store: Store, file: DataFile) -> bool:
    """Whether a file exists and has its recorded size and, if it is local, its recorded checksum."""
    try:
        has_size = store.num_bytes(file.path) == file.num_bytes
        return has_size and (store.remote or store.checksum(file.path)[0] == file.blake2b)
    except FileNotFoundError:
        return False


def is_intact(picture: bytes | pa.Buffer, crc32: int | None) -> bool:
    """Whether a picture's bytes match this checksum (CHECKSUM in schemas/pairs.py). True if there is no checksum."""
    return crc32 is None or zlib.crc32(picture) == crc32


@lru_cache(maxsize=1 << 16)
def _digest(path: str, num_bytes: int, mtime_ns: int, inode: int) -> str:
    with refusing_folders(path):
        return Files().checksum(path)[0]
