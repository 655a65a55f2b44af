"""The only place that opens files or S3 objects.

`Store` is an output folder: create-only writes, reads, lists. The functions below it read inputs anywhere fsspec
reaches. Local paths and `s3://` behave alike where a caller can see it.

Create-only is what every commit rests on. Locally: write beside, fsync, then `os.link`, which refuses an existing name
(a rename would overwrite it). On S3: one PUT or multipart completion with `If-None-Match: *` (s3fs `mode="create"`).
"""

import contextlib
import functools
import gzip
import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any
from uuid import uuid4

import fsspec
import pyarrow as pa

from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.s3 import FROM_ENVIRONMENT, S3Config, secret_in

_CHUNK_BYTES = 1 << 20
_REMOTE = ("s3://", "s3a://")
_CONFLICT_TRIES = 5
_CONFLICT_WAIT_S = 0.5
_GLOB_CHARACTERS = frozenset("*?[")


class StorageError(PairmillError, OSError):
    """A file or object could not be read or written; the message says which and what to do."""

    kind = FailureKind.STORAGE


_s3 = FROM_ENVIRONMENT


def configure(s3: S3Config) -> None:
    """How this process reaches S3 from now on. Every process that takes part calls it before it opens anything."""
    global _s3
    _s3 = s3


def _file_system(uri: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it). s3fs keeps one per process and set of options."""
    options = _s3.options(uri) if uri.startswith(_REMOTE) else {}
    fs, inside = fsspec.core.url_to_fs(uri, **options)
    return fs, inside


def is_remote(path: str) -> bool:
    """True for `s3://...` and other URLs, False for local paths and `file://`."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str) -> str:
    """The same place whatever the current directory becomes: remote URLs are left alone."""
    return path if is_remote(path) else str(Path(path.removeprefix("file://")).absolute())


def join(root: str, name: str) -> str:
    """`root/name`, for local paths and URLs alike."""
    return f"{root.rstrip('/')}/{name}"


class Store:
    """An output folder. All names are relative to it, with `/` between parts."""

    def __init__(self, root: str) -> None:
        if wrong := secret_in(root):
            raise StorageError(f"the output folder: {wrong}")
        self.root = absolute(root)
        self.remote = is_remote(root)
        if self.remote and not root.startswith(_REMOTE):
            raise StorageError(f"{root}: an output is a local folder or s3://...; nowhere else is a commit atomic")

    @property
    def fs(self) -> Any:
        """The fsspec file system of a remote root: this process's own, so a Store may be pickled and outlive a fork."""
        return _file_system(self.root)[0]

    def path(self, name: str) -> str:
        """Absolute path or URL of a name in this folder. Refuses names that lead out of it."""
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise StorageError(f"{name!r} leads out of {self.root}")
        return join(self.root, name)

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` under a new name; False, and nothing written, if the name exists already."""
        with self.new_file() as file:
            file.write(data)
            return self.create_from(name, file)

    @contextlib.contextmanager
    def new_file(self) -> Iterator[IO[bytes]]:
        """A temporary file to be handed to `create_from`; it is on the output's own disk where that is local."""
        folder = None
        if not self.remote:
            folder = Path(self.root, "tmp")
            folder.mkdir(parents=True, exist_ok=True)
        prefix = f"{socket.gethostname()}!{os.getpid()}!"
        try:
            opened = tempfile.NamedTemporaryFile(dir=folder, prefix=prefix)  # noqa: SIM115
        except FileNotFoundError:  # a run that ended beside this one removed the empty folder
            Path(self.root, "tmp").mkdir(parents=True, exist_ok=True)
            opened = tempfile.NamedTemporaryFile(dir=folder, prefix=prefix)  # noqa: SIM115
        with opened as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            yield file

    def create_from(self, name: str, file: IO[bytes]) -> bool:
        """Publish a `new_file` under a new name, durably; False if the name exists already."""
        file.flush()
        if self.remote:
            return self._create_remote(name, file.name)
        os.fsync(file.fileno())
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.name, target)
        except FileExistsError:
            return False
        _fsync_folder(target.parent)
        return True

    def _create_remote(self, name: str, local_path: str) -> bool:
        for tries_left in reversed(range(_CONFLICT_TRIES)):
            try:
                self.fs.put_file(local_path, self.path(name), mode="create")
            except FileExistsError:
                return False
            except PermissionError as error:
                raise StorageError(f"{self.path(name)}: access denied: {error}") from None
            except FileNotFoundError:  # the parts are joined already: the first reply to that was lost
                if self.exists(name):
                    return False
                raise
            except OSError as error:
                if _http_status(error) == 412:  # s3fs knows it by a part of the answer that only AWS sends
                    return False
                if _http_status(error) != 409 or not tries_left:
                    raise
                time.sleep(_CONFLICT_WAIT_S)
            else:
                return True
        raise AssertionError("unreachable")

    def read(self, name: str) -> bytes:
        """The whole content. Raises FileNotFoundError."""
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> IO[bytes]:
        """A seekable file for reading. Raises FileNotFoundError."""
        return open_input(self.path(name))

    def open_arrow(self, name: str) -> pa.NativeFile:
        """The same for Arrow's own readers, which then need no call of Python per read where the folder is local."""
        if self.remote:
            return pa.PythonFile(self.open(name), "r")
        return pa.OSFile(self.path(name))

    def checksum(self, name: str) -> tuple[str, int]:
        """(BLAKE2b-128 of the content in hex, number of bytes). Raises FileNotFoundError."""
        return checksum(self.path(name))

    def list(self, folder: str) -> list[str]:
        """Names of the files directly in `folder`, sorted, without the folder; empty where it does not exist."""
        if not self.remote:
            path = Path(self.path(folder))
            return sorted(entry.name for entry in os.scandir(path) if entry.is_file()) if path.is_dir() else []
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        return sorted(str(entry["name"]).rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")

    def folders(self, folder: str) -> Sequence[str]:
        """Names of the folders directly in `folder`, sorted; empty where it does not exist."""
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        found = (str(entry["name"]).rstrip("/") for entry in entries if entry["type"] == "directory")
        return sorted(name.rsplit("/", 1)[-1] for name in found)

    def exists(self, name: str) -> bool:
        """Whether a file of that name is there."""
        return bool(self.fs.exists(self.path(name))) if self.remote else Path(self.path(name)).is_file()

    def num_bytes(self, name: str) -> int:
        """Size. Raises FileNotFoundError."""
        return int(self.fs.size(self.path(name))) if self.remote else Path(self.path(name)).stat().st_size

    def delete(self, name: str) -> None:
        """Remove a file; no error if it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            if self.remote:
                self.fs.rm_file(self.path(name))
            else:
                Path(self.path(name)).unlink()

    def replace(self, name: str, data: bytes) -> None:
        """Write `data`, over whatever stands there. Only for files that are no part of a commit."""
        if self.remote:
            try:
                self.fs.pipe_file(self.path(name), data)
            except PermissionError as error:
                raise StorageError(f"{self.path(name)}: access denied: {error}") from None
            return
        with self.new_file() as file:
            file.write(data)
            file.flush()
            aside = f"{file.name}.{uuid4().hex}"
            os.link(file.name, aside)
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            Path(aside).replace(target)

    def remove_temporary(self) -> None:
        """Drop what killed processes of this machine left in `tmp/`."""
        for name in self.list("tmp") if not self.remote else []:
            host, _, rest = name.partition("!")
            if host == socket.gethostname() and not _is_alive(rest.partition("!")[0]):
                self.delete(f"tmp/{name}")
        if not self.remote:
            with contextlib.suppress(OSError):  # not empty, or never made
                Path(self.root, "tmp").rmdir()


def open_input(uri: str) -> IO[bytes]:
    """Open a file or object for reading, seekable, as it is (nothing is decompressed)."""
    if not is_remote(uri):
        return open(absolute(uri), "rb")
    fs, inside = _file_system(uri)
    return fs.open(inside, "rb")  # type: ignore[no-any-return]


def read_range(uri: str, offset: int, length: int) -> bytes:
    """Some bytes of a file or object, by one request. Safe in threads. Raises FileNotFoundError."""
    if not is_remote(uri):
        descriptor = os.open(absolute(uri), os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
    fs, inside = _file_system(uri)
    return bytes(fs.cat_file(inside, start=offset, end=offset + length))


@contextlib.contextmanager
def open_decompressed(uri: str) -> Iterator[IO[bytes]]:
    """Open for one pass from the front; `.gz` is decompressed on the way."""
    with open_input(uri) as file:
        if uri.endswith(".gz"):
            with gzip.open(file) as unzipped:
                yield unzipped  # type: ignore[misc]
        else:
            yield file


def read_text_lines(uri: str) -> Iterator[str]:
    """Lines of a UTF-8 text file (also .gz), without their ends; undecodable bytes become U+FFFD."""
    with open_decompressed(uri) as file:
        for line in file:
            yield line.decode("utf-8", errors="replace").rstrip("\r\n")


def expand(path: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files that a source path stands for: itself, a glob's matches, or what a folder holds, sorted.

    Folders are searched to any depth for names that end in one of `suffixes`, case aside; hidden files, and files
    whose names start with `_`, are passed over as Spark and Hive do. A glob, as in a shell, matches no hidden file.
    Raises FileNotFoundError where nothing matches.
    """
    path = absolute(path)
    fs, inside = _file_system(path)
    if fs.isfile(inside):
        found = [inside]
    elif fs.isdir(inside):
        found = [name for name in fs.find(inside) if _is_visible_input(name, inside, suffixes)]
    else:
        matches = fs.glob(inside) if _GLOB_CHARACTERS & set(inside) else []
        found = [name for name in matches if fs.isfile(name) and not PurePosixPath(name).name.startswith(".")]
    if not found:
        raise FileNotFoundError(f"no input found at {path}")
    return sorted(str(fs.unstrip_protocol(name)) if is_remote(path) else str(name) for name in found)


def files_in(folder: str) -> Iterator[tuple[str, int]]:
    """(name, bytes) of the files right in a folder, in no order."""
    if not is_remote(folder):
        with os.scandir(absolute(folder)) as entries:
            yield from ((entry.name, entry.stat().st_size) for entry in entries if entry.is_file())
        return
    fs, inside = _file_system(folder.rstrip("/"))
    for info in fs.ls(inside, detail=True):
        if info["type"] == "file":
            yield PurePosixPath(info["name"]).name, int(info["size"])


def leads_out(folder: str, name: str) -> bool:
    """Whether a file of a local folder is a link to somewhere outside of it."""
    if is_remote(folder):
        return False
    root = Path(absolute(folder)).resolve()
    return not (root / name).resolve().is_relative_to(root)


def is_folder(path: str) -> bool:
    """Whether a path or URL is a folder."""
    fs, inside = _file_system(absolute(path))
    return bool(fs.isdir(inside))


def _is_visible_input(name: str, folder: str, suffixes: tuple[str, ...]) -> bool:
    parts = PurePosixPath(name.removeprefix(folder)).parts
    return name.lower().endswith(suffixes) and not any(part.startswith((".", "_")) for part in parts)


def fingerprint(uri: str) -> str:
    """What identifies the content of an input file: ETag on S3, else size and BLAKE2b-128. Never a time stamp."""
    if is_remote(uri):
        fs, inside = _file_system(uri)
        info = fs.info(inside)
        if etag := info.get("ETag"):
            return f"etag:{str(etag).strip(chr(34))}"
    digest, num_bytes = checksum(uri)
    return f"blake2b:{num_bytes}:{digest}"


def checksum(uri: str) -> tuple[str, int]:
    """(BLAKE2b-128 of the content in hex, number of bytes)."""
    digest, num_bytes = hashlib.blake2b(digest_size=16), 0
    with open_input(uri) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
    return digest.hexdigest(), num_bytes


def file_checksum(file: IO[bytes]) -> tuple[str, int]:
    """(BLAKE2b-128 in hex, number of bytes) of an open file from its start."""
    file.flush()
    file.seek(0)
    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))  # type: ignore[arg-type]
    return digest.hexdigest(), file.tell()


def _http_status(error: OSError) -> int | None:
    """Of the answer behind an error of s3fs. 412: the name is taken; 409: two writes met, and AWS asks to try again."""
    response = getattr(error.__cause__, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@functools.cache  # asking means setting: once per process
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
