"""Writes a file, such as a page or a table, to a path that the user chooses, anywhere on the local disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

from pairmill.pipeline.common.files import absolute, is_remote
from pairmill.schemas.errors import JobError


@contextmanager
def new_local_file(path: str) -> Iterator[IO[bytes]]:
    """A file whose content becomes that of `path` when the block ends without an error. Until then, an existing file
    stays as it is.

    Raises JobError if the file cannot be written, or if `path` is remote or exists and is not a regular file: renaming
    over /dev/null would remove the device.
    """
    with _aside(path) as (target, aside), aside.open("xb") as file:
        yield file
        file.close()
        aside.replace(target)


def check_local_files(*paths: str | None) -> None:
    """Raise the error that `new_local_file` would raise for one of these paths, so that commands that run for a long
    time fail before they start. Leaves no file behind."""
    for path in paths:
        if path is not None:
            with _aside(path) as (_, aside):
                aside.open("xb").close()


@contextmanager
def _aside(path: str) -> Iterator[tuple[Path, Path]]:
    """(the file at `path` with symlinks resolved, a new temporary name beside it). Any file with the temporary name is
    removed at the end."""
    if is_remote(path):
        raise JobError(f"{path}: this must be a local file")
    if "\0" in path:
        raise JobError(f"{path!r} is not a file name")
    try:
        target = Path(absolute(path)).resolve()  # a symlink remains a symlink
        if target.exists() and not target.is_file():
            raise JobError(f"{path}: cannot be written to, because it is not a regular file")
        aside = target.with_name(f".pairmill-{uuid4().hex}")
        try:
            yield target, aside
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or error
        raise JobError(f"{path}: cannot be written to ({why}); choose a file in an existing folder") from None
