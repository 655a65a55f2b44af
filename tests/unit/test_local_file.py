"""Tests the files that users name with --out and --save: each is complete or unchanged and never replaces a device."""

import os
import stat
from pathlib import Path

import pytest

from pairmill.pipeline.common.local_file import new_local_file
from pairmill.schemas.errors import JobError


def test_a_file_is_replaced_only_once_everything_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 125)  # 250 bytes of the 255 that a name can have
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), new_local_file(str(path)) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    with new_local_file(f"file://{path}") as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_the_umask_is_respected(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    before = os.umask(0o077)
    try:
        with new_local_file(str(tmp_path / "link")) as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o600


def test_a_path_that_is_not_a_regular_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, problem in (
        (f"{tmp_path}/pipe", "is not a regular file"),
        (f"{tmp_path}", "is not a regular file"),
        (f"{tmp_path}/none/x", "No such file or directory"),
        (f"{tmp_path}/{'x' * 300}", "File name too long"),
        (f"{tmp_path}/a\0b", "is not a file name"),
        ("s3://bucket/x", "this must be a local file"),
    ):
        with pytest.raises(JobError, match=problem), new_local_file(path) as file:
            file.write(b"new")
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
