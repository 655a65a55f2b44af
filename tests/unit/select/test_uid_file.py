"""Tests the step `uids`, which selects rows by a file of uids, in any form that a uid can have."""

import gzip
import hashlib
import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pairmill.jobs.cli.main import app
from pairmill.jobs.select import refresh
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_subset
from pairmill.pipeline.select import uid_file
from pairmill.pipeline.select.keys import key_halves
from pairmill.pipeline.select.step_error import StepError
from pairmill.pipeline.select.uid_file import UidFile
from pairmill.pipeline.source.uid import own_uid
from pairmill.schemas.errors import JobError
from pairmill.schemas.select_steps import SelectStep
from pairmill.schemas.subset import SelectJob, StepReport
from tests.unit.select.conftest import make_subset, oracle, row_ids


def all_uids(dataset: Path) -> list[str]:
    tables = [pq.ParquetFile(path).read(columns=["uid"]) for path in sorted(dataset.glob("pairs/*.parquet"))]
    return [str(uid) for uid in pa.concat_tables(tables)["uid"].to_pylist()]


def write(path: Path, uids: list[str | None], kind: pa.DataType | None = None) -> str:
    pq.write_table(pa.table({"score": np.zeros(len(uids)), "uid": pa.array(uids, kind or pa.string())}), path)
    return str(path)


def test_the_rows_of_the_file_are_selected_in_dataset_order(
    dataset: Path, tmp_path: Path, many_chunks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = all_uids(dataset)[::7]
    given_forms: list[str | None] = [*chosen[::2], *(str(uuid.UUID(uid)).upper() for uid in chosen[1::2]), chosen[0]]
    file = write(tmp_path / "found.parquet", [*given_forms, "f" * 32, str(uuid.UUID(int=5))])
    subset = make_subset(dataset, "found", {"uids": file}, {"where": "width > 300"})
    pq.write_table(pa.table({"uid": sorted(set(chosen))}), tmp_path / "oracle.parquet")
    sql = f"select * from rows where uid in (select uid from '{tmp_path}/oracle.parquet') and width > 300"
    assert row_ids(dataset, "found") == oracle(dataset, sql)
    report = subset.reports[2]
    assert report.uids is not None
    assert report.uids.num_uids == len(set(chosen)) + 2
    assert report.uids.blake2b == Store(str(tmp_path)).checksum("found.parquet")[0]
    assert 0 < report.rows_out < report.uids.num_uids - 2  # the build rejected some of these rows


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_uids_of_any_arrow_text_type_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    file = write(tmp_path / "a.parquet", ["0" * 31 + "1", "0" * 32], kind)
    assert len(UidFile.of(Files(), file).load()) == 2


def test_a_refresh_with_a_changed_file_uses_it_and_says_so(dataset: Path, tmp_path: Path) -> None:
    uids = all_uids(dataset)
    file = write(tmp_path / "f.parquet", [*uids[:50]])
    first = make_subset(dataset, "again", {"uids": file})
    job = SelectJob(dataset=str(dataset), name="again")
    same = refresh(job)
    assert same.reports == first.reports
    write(tmp_path / "f.parquet", [*uids[:90]])
    changed = refresh(job)
    assert first.reports[2].uids is not None and changed.reports[2].uids is not None
    assert changed.rows_out > first.rows_out
    assert changed.reports[2].uids.earlier_blake2b == first.reports[2].uids.blake2b
    assert read_subset(Store(str(dataset)), "again") == changed


def test_the_command_prints_the_number_of_unknown_uids_and_stores_the_absolute_path(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "f.parquet", [all_uids(dataset)[0], "e" * 32, "d" * 32])
    monkeypatch.chdir(tmp_path)
    arguments = ["select", str(dataset), "few", "--all-pairs", "--step", "uids: f.parquet", "--overwrite"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "3 uids in the file; 2 of them in no row left by the previous steps" in done.stdout
    record = json.loads((dataset / "subsets/few/selection.json").read_bytes())
    assert record["steps"] == [
        {"where": None, "top": None, "dedup": None, "sample": None, "uids": f"{tmp_path}/f.parquet"}
    ]


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ({"id": ["a"]}, "has no column named `uid`"),
        ({"uid": [1]}, "column `uid` is int64, not text"),
        ({"uid": ["0" * 32, None]}, "has 1 value that cannot be read as a uid, such as null"),
        ({"uid": ["x\x1b[31m", "0" * 31, "0" * 32]}, r"2 values that cannot be read as a uid, such as 'x \[31m'"),
        (None, "is not a readable Parquet file"),
    ],
)
def test_a_file_that_is_not_a_list_of_uids_is_an_error_that_names_the_step(
    dataset: Path, tmp_path: Path, column: dict[str, list[object]] | None, problem: str
) -> None:
    path = tmp_path / "f.parquet"
    if column is None:
        path.write_text("uid\n")
    else:
        pq.write_table(pa.table(column), path)
    with pytest.raises(JobError, match=f"^step 1, uids: .*{problem}"):
        make_subset(dataset, "no", {"uids": str(path)})
    with pytest.raises(JobError, match=r"^step 1, uids: .*missing.parquet cannot be read: No such file"):
        make_subset(dataset, "no", {"uids": str(tmp_path / "missing.parquet")})


def test_a_text_file_gives_the_same_list_as_parquet(tmp_path: Path) -> None:
    uids = [hashlib.md5(b"%d" % number).hexdigest() for number in range(300)]
    parquet = UidFile.of(Files(), write(tmp_path / "f.parquet", uids)).load()
    lines = ["# mine", "", *uids[:-1], f"  {uuid.UUID(uids[-1])}\r"]
    for name, opener in (("f.txt", open), ("f.TXT.gz", gzip.open)):
        with opener(tmp_path / name, "wb") as file:
            file.write("\n".join(["\ufeff" + uids[0], *lines]).encode())
        found = UidFile.of(Files(), str(tmp_path / name)).load()
        assert (found.high.tolist(), found.low.tolist()) == (parquet.high.tolist(), parquet.low.tolist())
    for content, problem in (
        (b"kitten", "1 value that cannot be read as a uid, such as 'kitten'"),
        (b"\xff", "text file in UTF-8"),
    ):
        (tmp_path / "f.txt").write_bytes(content)
        with pytest.raises(StepError, match=problem):
            UidFile.of(Files(), str(tmp_path / "f.txt")).load()


def test_duplicate_columns_and_unreadable_paths_are_errors(tmp_path: Path) -> None:
    uids = pa.array(["0" * 32])
    pq.write_table(pa.Table.from_arrays([uids, uids], names=["uid", "uid"]), tmp_path / "two.parquet")
    for uri, problem in (
        (f"{tmp_path}/two.parquet", "has several columns named `uid`"),
        (f"{tmp_path}", "is a folder; choose a file in it"),
        ("/dev/null", "is a pipe or device, .* write its content to a file first"),
        (f"{tmp_path}/a\0b", "cannot be read: No such file"),
        ("https://example.com/uids.parquet", "cannot be read: use a local file or an s3:// URL"),
    ):
        with pytest.raises(StepError, match=problem):
            UidFile.of(Files(), uri).load()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bytes of a file of 300 uids. The footer is half of these bytes."""
    path = tmp_path_factory.mktemp("uids") / "intact.parquet"
    write(path, [hashlib.md5(b"%d" % number).hexdigest() for number in range(300)])
    return path


@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3))
def test_law_a_damaged_file_is_read_or_refused_with_its_name(intact: Path, changes: list[tuple[float, int]]) -> None:
    data = bytearray(intact.read_bytes())
    for place, byte in changes:
        data[int(place * len(data))] = byte
    damaged = intact.with_name("damaged.parquet")
    damaged.write_bytes(data)
    try:
        assert len(UidFile.of(Files(), str(damaged)).load()) <= 300
    except StepError as error:
        assert str(error).startswith(str(damaged))


def test_files_that_change_during_use_and_files_that_are_too_long_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = UidFile.of(Files(), write(tmp_path / "f.parquet", ["0" * 32, "1" * 32]))
    write(tmp_path / "f.parquet", ["2" * 32])
    with pytest.raises(StepError, match="has changed since the job began"):
        file.load()
    monkeypatch.setattr(uid_file, "MAX_UIDS", 0)
    with pytest.raises(StepError, match="has 1 uids; at most 0 fit"):
        UidFile.of(Files(), str(tmp_path / "f.parquet")).load()


UIDS = st.builds(
    lambda high, low: f"{high:016x}{low:016x}", st.sampled_from([0, 1, 2**64 - 1]), st.integers(0, 20)
) | st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")


@given(st.lists(UIDS, max_size=60), st.lists(UIDS, max_size=60))
def test_law_a_list_contains_exactly_its_uids(listed: list[str], asked: list[str]) -> None:
    made = uid_file._sorted(*key_halves(pa.chunked_array([pa.array(listed, pa.string())]), "uid"))
    assert len(made) == len(set(listed))
    found = made.contains(*key_halves(pa.chunked_array([pa.array(asked, pa.string())]), "uid"))
    assert found.tolist() == [uid in set(listed) for uid in asked]


@given(st.text("0aF-g{}", max_size=40) | st.uuids().map(str) | st.uuids().map(lambda u: u.hex.upper()))
def test_law_uids_in_files_follow_the_same_rules_as_uids_in_the_input(text: str) -> None:
    try:
        found = uid_file.uid_digits("f", pa.array([text])).to_pylist()
    except StepError:
        found = [None]
    assert found == [own_uid(text)]


def test_the_uids_step_adds_no_field_to_the_records_of_other_steps() -> None:
    assert set(SelectStep(where="a").model_dump()) == {"where", "top", "dedup", "sample"}
    assert "uids" not in StepReport(step="a", rows_in=1, rows_out=1).model_dump()
