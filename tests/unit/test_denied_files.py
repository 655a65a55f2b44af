"""Tests that a file without read permission costs only its own row, and that storage that denies all reads fails the
shard or job."""

import errno
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from PIL import Image

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.corpus.folders import folder_rows
from pairmill.pipeline.source.corpus.load import Loader
from pairmill.pipeline.source.cursor import UnreachableInput
from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.plan import make_plan
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import Shard
from pairmill.schemas.record import JobRecord


@dataclass(frozen=True)
class Denying(Files):
    """Files, some of which cannot be read, for example because the user lacks permission."""

    denied: tuple[str, ...] = ()
    code: int = errno.EACCES

    def __hash__(self) -> int:
        return hash(self.denied)

    def _check(self, uri: str) -> None:
        if uri.endswith(self.denied):
            raise OSError(self.code, os.strerror(self.code), uri)

    def open(self, uri: str) -> IO[bytes]:
        self._check(uri)
        return super().open(uri)

    def read_range(self, uri: str, offset: int, length: int) -> bytes:
        self._check(uri)
        return super().read_range(uri, offset, length)


def plant(folder: Path) -> list[tuple[str, int]]:
    folder.mkdir()
    for number in range(3):
        data = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(data, "PNG")
        (folder / f"{number}.png").write_bytes(data.getvalue())
        (folder / f"{number}.txt").write_text(f"text {number}")
    return [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize(
    ("denied", "problems"),
    [
        (("1.txt",), [None, "1.txt: cannot be read: {}", None]),
        (("1.txt", "1.png"), [None, "1.txt: cannot be read: {}", None]),
        ((".txt",), ["0.txt: cannot be read: {}", "1.txt: cannot be read: {}", "2.txt: cannot be read: {}"]),
        ((".txt", ".png"), None),
    ],
)
@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ENOENT])
def test_a_text_file_that_cannot_be_read_costs_only_its_row_if_other_files_can_be_read(
    tmp_path: Path, denied: tuple[str, ...], problems: list[str | None] | None, code: int
) -> None:
    names = plant(tmp_path / "in")
    rows = folder_rows(str(tmp_path / "in"), names, False, Denying(denied=denied, code=code))
    if problems is None:
        with pytest.raises(SourceError, match=rf"in/0.txt: cannot be read: {os.strerror(code)}"):
            list(rows)
        return
    expected = [problem and problem.format(os.strerror(code)) for problem in problems]
    assert [row.caption_problem for row in rows] == expected


@pytest.mark.parametrize(
    ("denied", "statuses"),
    [
        (("1.png",), ["ok", "empty_body", "ok"]),
        (("0.png", "2.png"), ["empty_body", "ok", "empty_body"]),
        ((".png",), ["empty_body"] * 3),  # the texts can be read
        ((".png", ".txt"), None),
    ],
)
def test_a_picture_that_cannot_be_read_costs_only_its_row_if_other_files_can_be_read(
    tmp_path: Path, denied: tuple[str, ...], statuses: list[str] | None
) -> None:
    plant(tmp_path / "in")
    values = {"source": {"paths": [str(tmp_path / "in")], "kind": "corpus"}, "output": str(tmp_path / "out")}
    job = BuildJob.model_validate({**values, "models": [{"name": "tiny"}]})
    store = Store(str(tmp_path / "out"))
    plan = make_plan(JobRecord(job, "f" * 32), store)
    reader, loader = ShardReader(store, plan.mapping), Loader(job, Denying(denied=denied))
    (planned,) = plan.shards.to_pylist()
    table = reader.read(Shard(**planned))
    reader.close()
    if statuses is None:
        with pytest.raises(UnreachableInput, match=r"in/\d.png: cannot be read, nor can other files"):
            loader(table, True)
    else:
        found = loader(table, True)
        assert found["status"].to_pylist() == statuses
        details = [None if status == "ok" else "no access: Permission denied" for status in statuses]
        assert found["status_detail"].to_pylist() == details
    loader.close()
