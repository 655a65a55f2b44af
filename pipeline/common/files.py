"""Reads local files and remote objects. Local paths and `s3://` URLs behave the same for callers."""

import contextlib
import errno
import gzip
import hashlib
import io
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.utils import glob_translate

from pairmill.pipeline.common.web_files import WEB_SCHEMES, is_named_gz, naming_web_errors, timeout
from pairmill.schemas.errors import FailureKind, JobError, PairmillError
from pairmill.schemas.s3 import FROM_ENVIRONMENT, S3Config

S3_SCHEMES = ("s3://", "s3a://")
MAX_LINE_BYTES = 1 << 20
"""Maximum length of a line in a list. Even a long URL has only a few kilobytes."""
_CHUNK_BYTES = 1 << 20
_TRIES = 16
GLOB_CHARACTERS = frozenset("*?[")


class NotAFileError(PairmillError, FileNotFoundError):
    """A folder is where pairmill's own file should be. To readers, the file is missing; the message says what to do."""

    kind = FailureKind.SHARD

    @classmethod
    def at(cls, path: str) -> "NotAFileError":
        """The error for the folder at this path."""
        return cls(f"{path} is a folder, but should be a file; move it elsewhere and run the same command again")


def is_remote(path: str) -> bool:
    """True for `s3://...` and other URLs, False for local paths and `file://`."""
    return "://" in path and not path.startswith("file://")


def why_no_file(path: str) -> str | None:
    """Why an existing local path is not a readable file, as the rest of a message that starts with the path. None for
    files, URLs and paths that do not exist."""
    try:
        mode = stat.S_IFREG if is_remote(path) else Path(absolute(path)).stat().st_mode
    except (OSError, ValueError):  # ValueError: NUL in the name
        return None
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return "is a folder; choose a file in it"
    return "is a pipe or device, which can be read only once; write its content to a file first"


def absolute(path: str) -> str:
    """The absolute form of a local path, with no `~`, `.`, `..` or trailing slash, so that equal paths compare equal.

    A leading `~` is the home folder, which no shell has filled in if the path is in a job file or in quotes; a folder
    of that name is `./~`. Leaves URLs unchanged, except that it strips trailing slashes from S3 URLs. On S3, `..` is an
    ordinary name.
    """
    if is_remote(path):
        return path.rstrip("/") if path.startswith(S3_SCHEMES) else path
    whole = Path(path.removeprefix("file://")).absolute()
    if path.partition("/")[0] == "~":
        with contextlib.suppress(RuntimeError):  # the user has no home folder
            whole = Path(path).expanduser().absolute()
    if ".." not in whole.parts:
        return str(whole)
    plain, real = os.path.normpath(whole), os.path.realpath(whole)
    return plain if os.path.realpath(plain) == real else real  # `..` of a symlinked directory is its target's parent


def is_inside(path: str, folder: str) -> bool:
    """Whether an absolute path or URL is below a folder. Treats `s3a://` like `s3://`, because S3 listings always use
    `s3://`."""
    path, folder = (name.replace("s3a://", "s3://", 1) for name in (path, folder.rstrip("/")))
    return path.startswith(f"{folder}/")


def join(root: str, name: str) -> str:
    """`root/name`, for local paths and URLs alike."""
    return f"{root.rstrip('/')}/{name}"


@dataclass(frozen=True)
class Files:
    """Opens inputs at any location that fsspec supports. Picklable, because it contains settings, not connections."""

    s3: S3Config = FROM_ENVIRONMENT

    def __hash__(self) -> int:
        return hash(self.s3.model_dump_json())

    def file_system(self, uri: str) -> tuple[Any, str]:
        """(fsspec file system, path in it). s3fs caches one file system per process and set of options.

        Bypasses fsspec's URL chaining for local files and S3 objects, whose names may contain `::`.
        """
        if uri.startswith(WEB_SCHEMES):
            fs, inside = fsspec.core.url_to_fs(uri, client_kwargs={"timeout": timeout()})
        elif is_remote(uri) and not uri.startswith(S3_SCHEMES):
            fs, inside = fsspec.core.url_to_fs(uri)
        elif is_remote(uri):
            fs = fsspec.filesystem("s3", **self.s3.options(uri))
            inside = fs._strip_protocol(uri)
        else:
            fs, inside = fsspec.filesystem("file"), absolute(uri)
        return fs, inside

    def glob(self, uri: str) -> Iterable[str]:
        """The files and folders that match a glob, as paths in its file system.

        On S3, a folder can have an empty name, and `**` matches it like any other folder, so that `a/**/*.parquet`
        selects all Parquet files below `a`. To fsspec, `a//b.parquet` would not match. Raises FileNotFoundError for a
        glob that can match nothing: with `**` in only part of a name, which fsspec refuses.
        """
        fs, pattern = self.file_system(uri)
        if any("**" in part for part in pattern.split("/") if part != "**"):
            raise FileNotFoundError(f"no input found at {uri}: `**` must be a whole name, as in `a/**/*.parquet`")
        first = min(map(pattern.index, GLOB_CHARACTERS & set(pattern)))
        root, _, prefix = pattern[:first].rpartition("/")
        if not (uri.startswith(S3_SCHEMES) and root and ("**/" in pattern or "//" in pattern)):
            return map(str, fs.glob(pattern))
        found = set(map(str, fs.find(root, prefix=prefix)))
        for folder in list(found):
            while len(folder := folder.rpartition("/")[0]) > len(root) and folder not in found:
                found.add(folder)
        return filter(re.compile(glob_translate(pattern).replace("(?:.+/)?", "(?:.*/)?")).match, found)

    def open(self, uri: str) -> IO[bytes]:
        """Open a file or object for random-access reading, without decompressing it."""
        if "\0" in uri:  # here, Python would raise ValueError
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri)
        if not is_remote(uri):
            return open(absolute(uri), "rb")
        fs, inside = self.file_system(uri)
        with _naming(uri):
            return fs.open(inside, "rb")  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def open_decompressed(self, uri: str) -> Iterator[IO[bytes]]:
        """Open a file or object for one sequential pass, decompressing `.gz` files. Raises JobError for a .gz that
        cannot be fully decompressed."""
        with self.open_stream(uri) as file:
            if is_named_gz(uri):
                with _naming_damaged(uri), gzip.open(file) as unzipped:
                    yield unzipped  # type: ignore[misc]
            elif is_remote(uri):
                yield io.BufferedReader(file)  # type: ignore[type-var]  # fsspec's `readline` takes no limit
            else:
                yield file

    @contextlib.contextmanager
    def open_stream(self, uri: str) -> Iterator[IO[bytes]]:
        """Open a file or object for one sequential pass. Every web server supports this, but not all serve parts.
        Raises JobError if a web server breaks off."""
        if not uri.startswith(WEB_SCHEMES):
            with self.open(uri) as file:
                yield file
            return
        fs, inside = self.file_system(uri)
        with naming_web_errors(uri), _naming(uri), fs.open(inside, "rb", block_size=0) as file:
            yield file

    def read_text_lines(self, uri: str) -> Iterator[str]:
        """Lines of a UTF-8 list (also .gz), without line endings and byte order marks. Undecodable bytes become U+FFFD.
        Raises JobError for a line that is too long for a list or has several ends."""
        with self.open_decompressed(uri) as file:
            number = 1
            while line := file.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    raise JobError(f"{uri}, line {number:,}: the line is longer than {MAX_LINE_BYTES:,} bytes")
                text = line.decode("utf-8", errors="replace").rstrip("\r\n").removeprefix("\ufeff")
                if "\r" in text:
                    raise JobError(
                        f"{uri}, line {number:,}: contains a carriage return; end each line with a line feed"
                    )
                yield text
                number += 1

    def read_range(self, uri: str, offset: int, length: int) -> bytes:
        """A byte range of a file or object, in one request. Thread-safe. Raises FileNotFoundError."""
        if not is_remote(uri):
            descriptor = os.open(absolute(uri), os.O_RDONLY)
            try:
                with refusing_folders(uri):
                    return os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        fs, inside = self.file_system(uri)
        with _naming(uri):
            return bytes(fs.cat_file(inside, start=offset, end=offset + length))

    def can_read_any(self, uris: Iterable[str]) -> bool:
        """Whether one of these files can be read now; tries only a few. Tells a file that may not be read from storage
        that denies everything: both raise PermissionError, because S3 answers 403 to HEAD requests for either."""
        for uri in islice(uris, _TRIES):
            with contextlib.suppress(OSError):
                self.read_range(uri, 0, 1)
                return True
        return False

    def is_folder(self, path: str) -> bool:
        """Whether a path or URL is a folder."""
        fs, inside = self.file_system(absolute(path))
        return bool(fs.isdir(inside))

    def fingerprint(self, uri: str) -> str:
        """A string that identifies the content of an input file: its ETag on S3, otherwise its size and BLAKE2b-128.

        It does not depend on timestamps, which change when a file is copied.
        """
        if is_remote(uri):
            fs, inside = self.file_system(uri)
            with naming_web_errors(uri), _naming(uri):
                info = fs.info(inside)
            if etag := info.get("ETag"):
                return f"etag:{str(etag).strip(chr(34))}"
        digest, num_bytes = self.checksum(uri)
        return f"blake2b:{num_bytes}:{digest}"

    def checksum(self, uri: str) -> tuple[str, int]:
        """(BLAKE2b-128 of the content in hex, number of bytes)."""
        digest, num_bytes = hashlib.blake2b(digest_size=16), 0
        with self.open_stream(uri) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                num_bytes += len(chunk)
        return digest.hexdigest(), num_bytes


@contextlib.contextmanager
def refusing_folders(path: str) -> Iterator[None]:
    """Raise NotAFileError if the block fails because there is a folder at this local path."""
    try:
        yield
    except OSError:
        if not Path(absolute(path)).is_dir():
            raise
        raise NotAFileError.at(path) from None


@contextlib.contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Add an object's name to errors about it, because s3fs reports only `Forbidden` or only the key."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from error
    except PermissionError as error:
        raise PermissionError(errno.EACCES, str(error), uri) from error
    except OSError as error:
        if type(error) is not OSError:  # a timeout, for example
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), uri) from error


@contextlib.contextmanager
def _naming_damaged(uri: str) -> Iterator[None]:
    """Add a .gz file's name to errors about it. Click would take an EOFError for the end of the user's input."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise JobError(f"{uri}: cannot be fully decompressed (half-written or damaged?): {error}") from error


def trusted_folders(folder: str, sources: Iterable[str]) -> tuple[Path, ...]:
    """Real paths of the folders into which the symlinks in a local folder may point.

    These are the folder itself, the sources that contain it and, if it is in a Hugging Face cache, the `blobs` of its
    repository (https://huggingface.co/docs/huggingface_hub/guides/manage-cache). A remote folder has no symlinks, so
    the result is empty.
    """
    if is_remote(folder):
        return ()
    path = Path(absolute(folder))
    above = [Path(source) for source in map(absolute, sources) if not is_remote(source)]
    roots = [path, *(each for each in above if path.is_relative_to(each))]
    # Resolve only the repository's folder, because a dataset may itself contain a symlink called `blobs`.
    blobs = [
        each.parent.parent.resolve() / "blobs" for each in (path, *path.parents) if each.parent.name == "snapshots"
    ]
    return (*(root.resolve() for root in roots), *blobs)


def links_outside(path: str, folders: Sequence[Path]) -> bool:
    """Whether a local file is a symlink to a target outside these real folders. Raises OSError for a symlink loop."""
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
