"""Tests files that a user names with --out and --save: whole or as they were, and never in the place of a device."""

import os
import stat
from pathlib import Path

import pytest

from pairmill.pipeline.common.local_file import new_local_file
from pairmill.schemas.errors import JobError


def test_a_file_is_replaced_when_everything_is_written_and_stays_if_not(tmp_path: Path) -> None:
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


def test_a_link_stays_a_link_and_the_umask_holds(tmp_path: Path) -> None:
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


def test_what_is_not_a_regular_file_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, problem in (
        (f"{tmp_path}/pipe", "is not a regular file"),
        (f"{tmp_path}", "is not a regular file"),
        (f"{tmp_path}/none/x", "No such file or directory"),
        (f"{tmp_path}/{'x' * 300}", "File name too long"),
        (f"{tmp_path}/a\0b", "is not a name of a file"),
        ("s3://bucket/x", "only a local file can be written to"),
    ):
        with pytest.raises(JobError, match=problem), new_local_file(path) as file:
            file.write(b"new")
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
