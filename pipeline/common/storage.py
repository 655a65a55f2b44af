"""Reads, lists and writes an output folder, local or on S3.

Every commit relies on create-only writes. Locally: write a temporary file, fsync, then `os.link`, which refuses an
existing name (a rename would overwrite it). On S3: a PUT or multipart completion with `If-None-Match: *` (s3fs
`mode="create"`).
"""

import contextlib
import errno
import functools
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any
from uuid import uuid4

import pyarrow as pa

from pairmill.pipeline.common.faults import LOCAL_ERRNOS
from pairmill.pipeline.common.files import S3_SCHEMES, Files, NotAFileError, absolute, is_remote, join, refusing_folders
from pairmill.pipeline.common.s3_probe import check_buckets
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.s3 import FROM_ENVIRONMENT, S3Config, secret_in

_CONFLICT_TRIES = 5
_CONFLICT_WAIT_S = 0.5
_NO_RIGHT_TO_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LINKS = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)
"""Errors that `link` raises on CIFS and FUSE and between disks. On FAT, it raises EPERM."""
_NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageError(PairmillError, OSError):
    """A file or object could not be read or written. The message says which one and what to do."""

    kind = FailureKind.STORAGE


class Store:
    """An output folder. All names are relative to it, separated by `/`."""

    def __init__(self, root: str, s3: S3Config = FROM_ENVIRONMENT) -> None:
        if wrong := secret_in(root):
            raise StorageError(f"the output folder: {wrong}")
        self.root = absolute(root)
        readable = self.root.encode(errors="replace").decode()
        if readable != self.root:  # paths of pictures in Parquet begin with it
            raise StorageError(f"the output folder: {readable}: the name is not UTF-8; rename it")
        self.files = Files(s3)
        self.remote = is_remote(root)
        if self.remote and not root.startswith(S3_SCHEMES):
            raise StorageError(
                f"{root}: the output must be a local folder or s3://..., because commits are atomic only there"
            )

    @property
    def fs(self) -> Any:
        """The fsspec file system of a remote root, one per process, so a Store can be pickled and survives a fork."""
        return self.files.file_system(self.root)[0]

    def check_access(self) -> None:
        """Raise S3AccessError if a folder on S3 cannot be reached. Takes at most 10 s. Local folders always pass."""
        check_buckets([self.root], self.files.s3)

    def path(self, name: str) -> str:
        """Absolute path or URL of a name in this folder. Raises StorageError for names outside it."""
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise StorageError(f"{name!r} is outside {self.root}")
        return join(self.root, name)

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` under a new name. If the name exists, return False and write nothing."""
        with self.new_file() as file:
            file.write(data)
            return self.create_from(name, file)

    @contextlib.contextmanager
    def new_file(self) -> Iterator[IO[bytes]]:
        """A temporary file for `create_from`. For a local output, it is on the same disk.

        Raises StorageError if writing is not permitted, or if the disk fills up while the block runs.
        """
        folder = tempfile.gettempdir() if self.remote else str(Path(self.root, "tmp"))
        file = self._opened_in(folder)
        try:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            yield file
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise self._no_room(error) from error
        finally:
            with contextlib.suppress(OSError):  # the data did not fit and was never published
                file.close()

    def _opened_in(self, folder: str) -> Any:
        try:
            with contextlib.suppress(FileNotFoundError):  # another run has just ended and removed the empty folder
                return _new_file_in(folder)
            return _new_file_in(folder)
        except OSError as error:
            if error.errno in _NO_ROOM:  # for example, no inodes are left
                raise self._no_room(error) from error
            if error.errno in LOCAL_ERRNOS:  # such as too many open files
                raise
            remedy = "set TMPDIR to another folder" if self.remote else "use another output, or make it writable"
            raise StorageError(f"{folder}: cannot be written to ({error.strerror}); {remedy}") from error

    def _no_room(self, error: OSError) -> StorageError:
        return StorageError(f"{tempfile.gettempdir() if self.remote else self.root}: {error.strerror}")

    def create_from(self, name: str, file: IO[bytes]) -> bool:
        """Publish a `new_file` durably under a new name. Returns False if the name exists."""
        file.flush()
        if self.remote:
            return self._create_remote(name, file.name)
        os.fsync(file.fileno())
        target = Path(self.path(name))
        with _explain_link_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.name, target)
            except FileExistsError:
                if target.is_dir():
                    raise NotAFileError.at(str(target)) from None
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
            except FileNotFoundError:  # an earlier try completed the upload, but its reply was lost
                if self.exists(name):
                    return False
                raise
            except OSError as error:
                if _http_status(error) == 412:  # s3fs only recognizes AWS's form of the response
                    return False
                if _http_status(error) != 409 or not tries_left:
                    raise
                time.sleep(_CONFLICT_WAIT_S)
            else:
                return True
        raise AssertionError("unreachable")

    def read(self, name: str) -> bytes:
        """The whole content of a file. Raises FileNotFoundError."""
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> IO[bytes]:
        """A seekable file for reading. Raises FileNotFoundError."""
        with refusing_folders(self.path(name)):
            return self.files.open(self.path(name))

    def open_arrow(self, name: str) -> pa.NativeFile:
        """Like `open`, but for Arrow's readers. Reads from a local folder bypass Python."""
        if self.remote:
            return pa.PythonFile(self.open(name), "r")
        with refusing_folders(self.path(name)):
            return pa.OSFile(self.path(name))

    def checksum(self, name: str) -> tuple[str, int]:
        """(BLAKE2b-128 in hex, number of bytes) of a file. Raises FileNotFoundError."""
        with refusing_folders(self.path(name)):
            return self.files.checksum(self.path(name))

    def list(self, folder: str) -> list[str]:
        """Names of the files directly in `folder`, sorted. Empty if the folder does not exist."""
        if not self.remote:
            path = Path(self.path(folder))
            if not path.is_dir():
                return []
            with os.scandir(path) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        names = (str(entry["name"]).rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")
        return sorted(name for name in names if name)  # S3 consoles create an object `folder/` for the folder itself

    def folders(self, folder: str) -> Sequence[str]:
        """Names of the folders directly in `folder`, sorted. Empty if the folder does not exist."""
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        found = (str(entry["name"]).rstrip("/") for entry in entries if entry["type"] == "directory")
        return sorted(name.rsplit("/", 1)[-1] for name in found)

    def exists(self, name: str) -> bool:
        """Whether a file with this name exists."""
        return bool(self.fs.exists(self.path(name))) if self.remote else Path(self.path(name)).is_file()

    def num_bytes(self, name: str) -> int:
        """Size of a file in bytes. Raises FileNotFoundError."""
        return int(self.fs.size(self.path(name))) if self.remote else Path(self.path(name)).stat().st_size

    def age_s(self, name: str) -> float:
        """Seconds since the file was last written. 0 if it no longer exists."""
        try:
            written = self.fs.modified(self.path(name))
        except FileNotFoundError:
            return 0
        return float((datetime.now(UTC) - written).total_seconds())

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            if self.remote:
                self.fs.rm_file(self.path(name))
            else:
                with refusing_folders(self.path(name)):  # a folder is not a file of this name
                    Path(self.path(name)).unlink()

    def replace(self, name: str, data: bytes) -> None:
        """Overwrite a file. Not for files that are part of a commit."""
        if self.remote:
            try:
                self.fs.pipe_file(self.path(name), data)
            except PermissionError as error:
                raise StorageError(f"{self.path(name)}: access denied: {error}") from None
            return
        with self.new_file() as file:
            file.write(data)
            self.replace_from(name, file)

    def replace_from(self, name: str, file: IO[bytes]) -> None:
        """Like `replace`, with the content of a `new_file`."""
        file.flush()
        if self.remote:
            try:
                self.fs.put_file(file.name, self.path(name))
            except PermissionError as error:
                raise StorageError(f"{self.path(name)}: access denied: {error}") from None
            return
        os.fsync(file.fileno())
        aside = f"{file.name}.{uuid4().hex}"
        target = Path(self.path(name))
        with _explain_link_errors(target):
            os.link(file.name, aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            Path(aside).replace(target)
        _fsync_folder(target.parent)

    def remove_temporary(self, own: bool = False) -> None:
        """Delete files that killed processes on this machine left behind in `tmp/`. `own`: also those of this process,
        if it has been interrupted and writes no more."""
        mine = f"{socket.gethostname()}!{os.getpid()}!"
        for name in self.list("tmp") if not self.remote else []:
            of_this_machine = name.partition("!")[0] == socket.gethostname()
            if of_this_machine and (not is_in_use(name) or (own and name.startswith(mine))):
                self.delete(f"tmp/{name}")
        if not self.remote:
            with contextlib.suppress(OSError):  # not empty, or does not exist
                Path(self.root, "tmp").rmdir()


def is_in_use(name: str) -> bool:
    """Whether a process on this machine is writing the file `tmp/NAME`. For other machines, this cannot be known."""
    host, _, rest = name.partition("!")
    return host == socket.gethostname() and _is_alive(rest.partition("!")[0])


@contextlib.contextmanager
def _explain_link_errors(target: Path) -> Iterator[None]:
    """Raise StorageError or NotAFileError with a remedy if a file cannot be linked to its final name."""
    try:
        with refusing_folders(str(target)):
            yield
    except OSError as error:
        if error.errno not in (*_NO_RIGHT_TO_WRITE, *_NO_LINKS, *_NO_FOLDER):
            raise
        raise StorageError(
            f"{target}: cannot be created ({error.strerror}); check its folder's permissions, that its file system has "
            "hard links, and that the whole output is on one disk"
        ) from None


def _new_file_in(folder: str) -> Any:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return tempfile.NamedTemporaryFile(dir=folder, prefix=f"{socket.gethostname()}!{os.getpid()}!")


def _http_status(error: OSError) -> int | None:
    """HTTP status of an s3fs error. 412: the name exists. 409: two writes collided, and AWS requires a retry."""
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


@functools.cache  # the umask can only be read by setting it, so read it once
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
