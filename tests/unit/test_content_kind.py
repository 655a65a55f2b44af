"""Tests that a file whose content is not what its name says is named as what it is, wherever it is read."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.source.convert import inspect_text
from pairmill.pipeline.source.corpus.tars import tar_rows
from pairmill.pipeline.source.files import SourceError, inspect_parquet, kind_of
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.status import Status
from tests.tars import write_tar

LIST = b"url,caption\nhttp://a.invalid/1.jpg,one\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html><html><title>Please log in</title></html>" + b" " * 600


def tar_of_lists() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("a.csv")
        member.size = len(LIST)
        tar.addfile(member, io.BytesIO(LIST))
    return packed.getvalue()


def zip_of_lists() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.csv", LIST)
    return packed.getvalue()


def read_list(path: str) -> object:
    return inspect_text(path, kind_of(path), Files(), SourceConfig(paths=[path]))


def read_parquet(path: str) -> object:
    return inspect_parquet(path, Files())


def read_tar(path: str) -> object:
    return list(tar_rows(path, Files()))


CASES = [
    *(
        (read, name, content, says)
        for read, name in (
            (read_list, "a.csv"),
            (read_list, "a.txt"),
            (read_list, "a.jsonl"),
            (read_parquet, "a.parquet"),
            (read_tar, "a.tar"),
        )
        for content, says in ((POINTER, "is only a Git LFS pointer; run `git lfs pull`"), (PAGE, "is a web page; "))
    ),
    (read_list, "a.csv.gz", gzip.compress(POINTER), "its content is only a Git LFS pointer"),
    (read_list, "a.csv.gz", gzip.compress(gzip.compress(LIST)), "its content is compressed with gzip; unpack it"),
    (read_list, "a.csv.gz", gzip.compress(tar_of_lists()), "its content is a tar archive; unpack it"),
    (read_list, "a.csv", tar_of_lists(), "is a tar archive; unpack it"),
    (read_parquet, "a.parquet", tar_of_lists(), "is a tar archive; unpack it"),
    (read_parquet, "a.parquet", gzip.compress(LIST), "is compressed with gzip; unpack it"),
    (read_parquet, "a.parquet", b"PAR1" + bytes(99), "not a complete Parquet file"),
    (read_parquet, "a.parquet", LIST, "not a complete Parquet file"),
    (read_tar, "a.tar", gzip.compress(tar_of_lists()), "it is compressed with gzip; pictures are read by range, so"),
    (read_tar, "a.tar", zip_of_lists(), "it is a ZIP archive; pictures are read by range, so unpack it"),
    (read_tar, "a.tar", b"x" + tar_of_lists()[1:], "is not an uncompressed tar: bad checksum$"),
]


@pytest.mark.parametrize(
    ("read", "name", "content", "says"),
    CASES,
    ids=[f"{read.__name__} {name} {says}" for read, name, _, says in CASES],  # packed bytes contain the time
)
def test_a_file_that_is_not_what_its_name_says_is_named_with_a_remedy(
    tmp_path: Path, read: Callable[[str], object], name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=says):
        read(str(tmp_path / name))


def test_a_git_lfs_pointer_in_place_of_a_caption_is_no_caption(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.txt", POINTER)])
    (row,) = tar_rows(str(path), Files())
    assert (row.caption, row.caption_problem) == (None, "0.txt: is only a Git LFS pointer")


def test_a_git_lfs_pointer_in_place_of_a_picture_is_named() -> None:
    picture = ImageProcessor(ImagesConfig()).process(POINTER)
    assert (picture.status, picture.detail) == (Status.IMAGE_UNSUPPORTED, "git lfs pointer")
