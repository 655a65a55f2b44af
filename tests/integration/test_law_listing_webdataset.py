"""Invariant: tar members are grouped as in webdataset, and the command can read the tars in shared/data/cases."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset.tariterators as webdataset
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.corpus.tars import tar_rows
from pairmill.pipeline.source.files import PICTURE_ENDINGS
from pairmill.pipeline.source.uid import pair_uid
from tests.integration.conftest import SHARED_DATA
from tests.integration.test_build import sequentially
from tests.integration.test_embed import embed_job, holds, rows_in

CASES = SHARED_DATA / "cases"

names = st.builds(
    "{}{}.{}".format,
    st.sampled_from(["", "", "./", "a.b/", "deep/er/"]),
    st.sampled_from(["0", "1", "x-y", ".hidden", "_2"]),
    st.sampled_from(["jpg", "JPG", "left.jpg", "png", "txt", "json", "seg.png", "caption"]),
)


@given(st.lists(names, min_size=1, max_size=12))
def test_samples_are_those_of_webdataset(tmp_path_factory: pytest.TempPathFactory, found: list[str]) -> None:
    # webdataset refuses a repeated name, and mistakes `a.b/.c.jpg` for a file `b/.c.jpg` with the key `a`
    unique = [name for name in dict.fromkeys(found) if "/." not in name.replace("./", "", 1)]
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in unique:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    data = path.read_bytes()
    with path.open("rb") as file:
        members = [{**member, "__url__": ""} for member in webdataset.tar_file_iterator(file)]
    try:
        samples = list(webdataset.group_by_keys(iter(members)))
    except ValueError:  # a key has the same extension in upper and lower case
        return
    expected = []
    for sample in samples:
        parts = {ending: body for ending, body in sample.items() if not ending.startswith("__")}
        endings = [ending for ending in parts if ending.rpartition(".")[2] in PICTURE_ENDINGS]
        images = [parts[ending] for ending in sorted(endings, key=lambda ending: "." in ending)]  # as trainers do
        expected.append((sample["__key__"], images, parts.get("txt", parts.get("caption"))))
    rows = [
        (
            row.key,
            [data[i.offset : i.offset + i.length] for i in ([row.image] if row.image else []) + list(row.alternates)],
            row.caption,
        )
        for row in tar_rows(str(path), Files())
    ]
    assert [(key, images) for key, images, _ in rows] == [(key, images) for key, images, _ in expected]
    for (_, _, caption), (_, _, text) in zip(rows, expected, strict=True):
        assert text is None or caption is not None


def command(*arguments: object) -> str:
    found = subprocess.run(
        [sys.executable, "-m", "pairmill", *map(str, arguments)], capture_output=True, text=True, timeout=240
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def by_key(output: Path) -> dict[str, list[tuple[str | None, str]]]:
    """Key -> (caption, status) of each of its rows."""
    found: dict[str, list[tuple[str | None, str]]] = {}
    for row in rows_in(output) + rows_in(output, "rejects"):
        found.setdefault(row["key"], []).append((row["caption"], row["status"]))
    return {key: sorted(rows, key=str) for key, rows in found.items()}


def test_the_tars_of_the_cases_are_embedded_and_status_accounts_for_each_member(tmp_path: Path) -> None:
    tars = [CASES / f"{name}.tar" for name in ("appledouble", "hardlinks", "big_json", "sparse", "json_caption_list")]
    output = tmp_path / "out"
    printed = command("embed", *tars, output, "--model", "tiny", "--set", "shard_rows=4", "--no-report", "--json")
    result: dict[str, object] = json.loads(printed.splitlines()[-1])
    members = 0
    for path in tars:
        with tarfile.open(path) as tar:
            members += len(tar.getmembers())
    assert result["seen"] == members == result["input_rows"] + result["parts"] + 2
    assert result["passed_over"] == {"name begins with a dot": 2}
    parts = "14 parts of rows (captions, further pictures of a name)"
    line = f"{members} entries in the input: 14 rows, {parts}, 2 passed over ("
    assert line in printed
    assert line in command("status", output)
    found = by_key(output)
    assert result["kept"] == sum(status == "ok" for rows in found.values() for _, status in rows)
    assert found["a"] == [("first", "ok"), ("from a mac", "ok")]
    assert found["b"] == [("black", "row_malformed")]
    assert found["c"] == [("last", "ok")]
    assert found["sa_1"] == [("segment anything", "ok")]
    for key in ("0", "1", "2"):
        assert {(f"a red dog {key}", "ok"), (f"a cat {key}", "ok")} <= set(found[key])
    assert ("shared caption", "ok") in found["1"]
    assert (None, "ok") in found["2"]
    assert found["4"] == [("four", "ok")]
    holds(output)


def test_the_folders_of_the_cases_are_embedded_completely(tmp_path: Path) -> None:
    result = sequentially(embed_job(tmp_path / "out", CASES / "heic_before_jpg", CASES / "underscore_folder"))
    assert (result.seen, result.rows_in, result.parts, result.passed_over) == (10, 6, 4, {})
    found = by_key(tmp_path / "out")
    assert found["IMG_7"] == [("a live photo", "ok")]
    assert {key for key, rows in found.items() if rows[0][1] == "ok"} == {
        *("IMG_7", "_MG_0001", "_MG_0002", "_MG_0003", "a", "b")
    }
    (chosen,) = [row for row in rows_in(tmp_path / "out") if row["key"] == "IMG_7"]
    assert chosen["image_tar"].endswith("IMG_7.JPG")
    assert chosen["original_format"] == "JPEG"
    holds(tmp_path / "out")


def test_five_pictures_with_empty_urls_and_one_caption_are_five_pairs(tmp_path: Path) -> None:
    result = sequentially(embed_job(tmp_path / "out", CASES / "empty_urls.parquet", shard_rows=2))
    assert (result.rows_in, result.kept) == (5, 5)
    rows = rows_in(tmp_path / "out")
    assert len({row["uid"] for row in rows}) == 5
    assert {row["uid"] for row in rows} == {pair_uid(row["sha256"].encode(), b"a photo") for row in rows}
    holds(tmp_path / "out")


def test_the_first_of_several_pictures_that_decodes_wins_and_if_none_does_one_row_says_so(
    tmp_path: Path,
) -> None:
    good, heic = ((CASES / "heic_before_jpg" / name).read_bytes() for name in ("IMG_7.JPG", "IMG_7.HEIC"))
    members = [("cut.jpg", good[:900]), ("cut.png", good), ("cut.txt", b"whole"), ("none.heic", heic)]
    members += [("none.jpg", good[:300]), ("none.txt", b"lost")]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    result = sequentially(embed_job(tmp_path / "out", tmp_path / "a.tar"))
    assert (result.seen, result.rows_in, result.parts) == (6, 2, 4)
    assert by_key(tmp_path / "out") == {"cut": [("whole", "ok")], "none": [("lost", "image_unsupported")]}
    (lost,) = rows_in(tmp_path / "out", "rejects")
    assert lost["status_detail"] == "picture 1: image_unsupported; picture 2: image_corrupt"
    assert Store(str(tmp_path / "out")).exists("manifests/000000000.json")
