"""Tests that messages about a single item use the singular, not `1 rows`."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from pairmill.jobs.demo.demo import _announcement
from pairmill.jobs.demo.pairs import Web
from pairmill.pipeline.check.files import check_file
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.export.arrays import EmbeddingArray
from pairmill.pipeline.export.formats import FormatError, Part, WebDataset
from pairmill.pipeline.export.readme import readme
from pairmill.pipeline.source.corpus import tar_members
from pairmill.pipeline.source.describe import describe_passed_over
from pairmill.pipeline.source.records import csv_records
from pairmill.schemas.export import ExportedPart
from pairmill.schemas.manifest import DataFile

NOUNS = ("row", "class", "match", "hash", "entry", "day", "CPU")


def one_missing_caption(_: Path, __: pytest.MonkeyPatch) -> str:
    part = Part("00000", pa.table({"caption_clean": pa.array([None], pa.string())}), io.BytesIO(), [])
    with pytest.raises(FormatError) as caught:
        WebDataset([], has_captions=True).files(part)
    return str(caught.value)


def one_missing_embedding(_: Path, __: pytest.MonkeyPatch) -> str:
    with pytest.raises(FormatError) as caught:
        EmbeddingArray("e", "e", "s").read(pa.table({"e": pa.array([None], pa.list_(pa.float16(), 4))}))
    return str(caught.value)


def one_known_member(_: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as tar:
        for number in range(2):
            tar.addfile(tarfile.TarInfo(f"{number}.jpg"))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "gone.jpg"
        tar.addfile(link)
    monkeypatch.setattr(tar_members, "_MAX_REMEMBERED_BYTES", 3 * tar_members._REMEMBERED_BYTES // 2)
    *_others, last = tar_members.members(file, len(file.getvalue()))
    return tar_members.LinkTargets(file, len(file.getvalue())).resolve(last).problem or ""


def one_byte(folder: Path, _: pytest.MonkeyPatch) -> str:
    (folder / "a").write_bytes(b"x")
    return check_file(Store(str(folder)), DataFile(path="a", num_bytes=2, blake2b="")) or ""


def one_field(_: Path, __: pytest.MonkeyPatch) -> str:
    (record,) = csv_records(iter([b"alone\n"]), ",", 2)
    return record.problem or ""


MESSAGES = {
    lambda *_: describe_passed_over(2, 1, 1, {}): (
        "2 entries in the input: 1 row, 1 part of rows (captions, further pictures of a name)"
    ),
    lambda *_: ", ".join(counted(1, noun) for noun in NOUNS): "1 row, 1 class, 1 match, 1 hash, 1 entry, 1 day, 1 CPU",
    lambda *_: ", ".join(counted(2_000, noun) for noun in NOUNS): (
        "2,000 rows, 2,000 classes, 2,000 matches, 2,000 hashes, 2,000 entries, 2,000 days, 2,000 CPUs"
    ),
    lambda *_: f"{counted(1.0, 'CPU')}, {counted(0.5, 'CPU')}": "1 CPU, 0.5 CPUs",
    one_missing_caption: "at least 1 selected row without a caption: add `where: caption_clean is not None`",
    one_missing_embedding: "e is null in 1 selected row: add `where: s is not None`",
    one_known_member: "a link to gone.jpg, which is not among the first 1 member of the tar",
    one_byte: "a has changed since it was committed: 1 byte instead of 2",
    one_field: "1 field, not 2: alone",
    lambda *_: readme("webdataset", [ExportedPart(number=0, rows=1, files={})], None, []).splitlines()[-1]: (
        "1 pair of pictures and captions, exported by pairmill in the format webdataset."
    ),
    lambda *_: _announcement([], Web(80, 81, ("127.0.0.1",)), 7).splitlines()[0]: (
        "Serving 0 pairs on 1 loopback host, port 80 (seed 7):"
    ),
}


@pytest.mark.parametrize("message", MESSAGES, ids=list(MESSAGES.values()))
def test_messages_about_one_item_are_singular(message: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(message)
    assert message(tmp_path, monkeypatch) == MESSAGES[message]
