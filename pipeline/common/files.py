"""Reads files and objects anywhere: local paths and `s3://` behave the same to callers."""

import contextlib
import gzip
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec

from pairmill.schemas.s3 import FROM_ENVIRONMENT, S3Config

S3_SCHEMES = ("s3://", "s3a://")
_CHUNK_BYTES = 1 << 20
GLOB_CHARACTERS = frozenset("*?[")


def is_remote(path: str) -> bool:
    """True for `s3://...` and other URLs, False for local paths and `file://`."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str) -> str:
    """The absolute form of a local path, without `.`, `..` and a trailing slash, so that equal paths compare equal.

    From URLs, only a trailing slash is removed, and only on S3, where `..` is an ordinary name.
    """
    if is_remote(path):
        return path.rstrip("/") if path.startswith(S3_SCHEMES) else path
    whole = Path(path.removeprefix("file://")).absolute()
    if ".." not in whole.parts:
        return str(whole)
    plain, real = os.path.normpath(whole), os.path.realpath(whole)
    return plain if os.path.realpath(plain) == real else real  # below a linked folder, `..` leads elsewhere


def is_inside(path: str, folder: str) -> bool:
    """Whether the absolute path or URL is below the folder. S3 listings say `s3://` even if `s3a://` was requested."""
    path, folder = (name.replace("s3a://", "s3://", 1) for name in (path, folder.rstrip("/")))
    return path.startswith(f"{folder}/")


def join(root: str, name: str) -> str:
    """`root/name`, for local paths and URLs alike."""
    return f"{root.rstrip('/')}/{name}"


@dataclass(frozen=True)
class Files:
    """Opens inputs wherever fsspec can. Picklable: contains settings, not connections."""

    s3: S3Config = FROM_ENVIRONMENT

    def __hash__(self) -> int:
        return hash(self.s3.model_dump_json())

    def file_system(self, uri: str) -> tuple[Any, str]:
        """(fsspec file system, path in it). s3fs caches one per process and set of options.

        In names of local files and objects `::` is part of the name. fsspec takes it for a chain of file systems.
        """
        if is_remote(uri) and not uri.startswith(S3_SCHEMES):
            fs, inside = fsspec.core.url_to_fs(uri)
        elif is_remote(uri):
            fs = fsspec.filesystem("s3", **self.s3.options(uri))
            inside = fs._strip_protocol(uri)
        else:
            fs, inside = fsspec.filesystem("file"), absolute(uri)
        return fs, inside

    def open(self, uri: str) -> IO[bytes]:
        """Open a file or object for reading, seekable, without decompressing it."""
        if not is_remote(uri):
            return open(absolute(uri), "rb")
        fs, inside = self.file_system(uri)
        return fs.open(inside, "rb")  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def open_decompressed(self, uri: str) -> Iterator[IO[bytes]]:
        """Open for one sequential pass; `.gz` is decompressed."""
        with self.open(uri) as file:
            if uri.endswith(".gz"):
                with gzip.open(file) as unzipped:
                    yield unzipped  # type: ignore[misc]
            else:
                yield file

    def read_text_lines(self, uri: str) -> Iterator[str]:
        """Lines of a UTF-8 text file (also .gz), without line ends; undecodable bytes become U+FFFD."""
        with self.open_decompressed(uri) as file:
            for line in file:
                yield line.decode("utf-8", errors="replace").rstrip("\r\n")

    def read_range(self, uri: str, offset: int, length: int) -> bytes:
        """A byte range of a file or object, in one request. Thread-safe. Raises FileNotFoundError."""
        if not is_remote(uri):
            descriptor = os.open(absolute(uri), os.O_RDONLY)
            try:
                return os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        fs, inside = self.file_system(uri)
        return bytes(fs.cat_file(inside, start=offset, end=offset + length))

    def is_folder(self, path: str) -> bool:
        """Whether a path or URL is a folder."""
        fs, inside = self.file_system(absolute(path))
        return bool(fs.isdir(inside))

    def fingerprint(self, uri: str) -> str:
        """Identifies the content of an input file: its ETag on S3, else size and BLAKE2b-128. Never a timestamp."""
        if is_remote(uri):
            fs, inside = self.file_system(uri)
            info = fs.info(inside)
            if etag := info.get("ETag"):
                return f"etag:{str(etag).strip(chr(34))}"
        digest, num_bytes = self.checksum(uri)
        return f"blake2b:{num_bytes}:{digest}"

    def checksum(self, uri: str) -> tuple[str, int]:
        """(BLAKE2b-128 of the content in hex, number of bytes)."""
        digest, num_bytes = hashlib.blake2b(digest_size=16), 0
        with self.open(uri) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                num_bytes += len(chunk)
        return digest.hexdigest(), num_bytes


def trusted_folders(folder: str, sources: Iterable[str]) -> tuple[Path, ...]:
    """Real paths of the folders that links in a local folder may lead to: itself, the sources that it is in, and in a
    Hugging Face cache, its repository's `blobs` (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
    Empty for a remote folder, which has no links.
    """
    if is_remote(folder):
        return ()
    path = Path(absolute(folder))
    above = [Path(source) for source in map(absolute, sources) if not is_remote(source)]
    roots = [path, *(each for each in above if path.is_relative_to(each))]
    # Not resolved as a whole: a dataset may itself contain a link called `blobs`.
    blobs = [
        each.parent.parent.resolve() / "blobs" for each in (path, *path.parents) if each.parent.name == "snapshots"
    ]
    return (*(root.resolve() for root in roots), *blobs)


def leads_out(path: str, folders: Sequence[Path]) -> bool:
    """Whether a local file is a link to somewhere outside these real folders. Raises OSError for a loop."""
    if is_remote(path):
        return False
    target = Path(path).resolve()
    return not any(target.is_relative_to(folder) for folder in folders)


def file_checksum(file: IO[bytes]) -> tuple[str, int]:
    """(BLAKE2b-128 in hex, number of bytes) of an open file, read from its start."""
    file.flush()
    file.seek(0)
    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))  # type: ignore[arg-type]
    return digest.hexdigest(), file.tell()
