"""Tests that a foreign folder is refused before anything is written there, and that its files are never deleted."""

import errno
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.jobs.build import prepare
from pairmill.jobs.demo.demo import run_demo
from pairmill.jobs.explain import explain
from pairmill.jobs.export_claim import claim_output
from pairmill.pipeline.check.verify import foreign_files
from pairmill.pipeline.common.faults import LOCAL_ERRNOS, Failure
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.listing import list_path
from pairmill.pipeline.common.storage import StorageError, Store
from pairmill.pipeline.dataset.output_folder import check_dataset_folder, check_export_folder
from pairmill.pipeline.dataset.strays import StrayFiles
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.errors import FailureKind, JobError, PairmillError
from pairmill.schemas.export import ExportRecord
from pairmill.schemas.jobs import BuildJob
from tests.unit.test_commit import in_flight, writer

FOREIGN = [
    ["thesis.docx"],
    ["images/cat.jpg"],
    ["images/00000.tar", "manifests/a.json", "pairs/a.parquet"],
    ["plan/notes.md", "job.yaml"],
    ["input/list.csv"],
    ["input/list.parquet", "tmp/x"],
    ["manifests/000000000.json", "pairs/000000000.parquet"],  # pairmill's own files, but the plan was deleted
    ["export/notes.txt"],
    [".DS_Store", "_SUCCESS"],
]
FREE = [[], [".DS_Store"], [".git/config", ".hidden"], ["tmp/host!1!x"], ["input/a.csv-0123456789abcdef.parquet"]]


def fill(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"mine")


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def job(folder: Path, output: Path, kind: str = "urls") -> BuildJob:
    (folder / "in.csv").write_text("url;caption\n" + "".join(f"http://e.org/{n};a cat\n" for n in range(40)))
    source = {"paths": [str(folder / "in.csv")], "kind": kind, "caption_column": "caption"}
    models = [{"name": "tiny"}] if kind == "corpus" else []
    return BuildJob.model_validate({"source": source, "output": str(output), "shard_rows": 4, "models": models})


@pytest.mark.parametrize("names", FOREIGN)
@pytest.mark.parametrize("start", [prepare, explain])
@pytest.mark.parametrize("kind", ["urls", "corpus"])
def test_a_foreign_folder_is_refused_and_unchanged(
    tmp_path: Path, names: list[str], start: Callable[[BuildJob], object], kind: str
) -> None:
    fill(tmp_path / "out", names)
    before = contents(tmp_path / "out")
    with pytest.raises(JobError, match=r"/out is not empty and is not pairmill's: it contains .*; use a new"):
        start(job(tmp_path, tmp_path / "out", kind))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("names", [*FOREIGN, ["input/a.csv-0123456789abcdef.parquet"], ["plan/0.parquet"]])
def test_an_export_refuses_a_foreign_folder(tmp_path: Path, names: list[str]) -> None:
    fill(tmp_path, names)
    is_dataset = names == ["plan/0.parquet"]
    with pytest.raises(JobError, match="is a dataset; use a" if is_dataset else "is not empty and is not pairmill's"):
        check_export_folder(Store(str(tmp_path)))


@pytest.mark.parametrize("names", [["thesis.docx"], ["dataset/pairs/0.parquet"], ["demo.json"]])
def test_the_demo_refuses_a_foreign_folder(tmp_path: Path, names: list[str]) -> None:
    fill(tmp_path / "out", names)
    before = contents(tmp_path / "out")
    with pytest.raises(JobError, match="the demo did not write this folder, which contains"):
        run_demo(str(tmp_path / "out"), 800, 1, as_json=False)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("names", FREE)
def test_a_folder_with_at_most_hidden_or_leftover_files_can_be_used(tmp_path: Path, names: list[str]) -> None:
    fill(tmp_path / "out", names)
    _, plan = prepare(job(tmp_path, tmp_path / "out"))
    assert plan.num_rows == 40


def test_a_new_folder_can_be_used_and_the_folder_of_a_dataset_may_contain_other_files(tmp_path: Path) -> None:
    _, plan = prepare(job(tmp_path, tmp_path / "deep" / "out"))
    fill(tmp_path / "deep" / "out", ["notes.md", "input/more.csv", "images/cat.jpg", "report.html"])
    assert prepare(job(tmp_path, tmp_path / "deep" / "out"))[1] == plan


def test_a_path_that_is_or_goes_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "out"):
        for check in (check_dataset_folder, check_export_folder):
            with pytest.raises(JobError, match=r"/file is a file, not a folder"):
                check(Store(str(output)))


def awkward(folder: Path) -> Iterator[str]:
    """Output paths at which no user, not even root, can make a folder."""
    (folder / "loop").symlink_to("loop")
    (folder / "file").touch()
    yield f"{folder}/loop"
    yield f"{folder}/loop/out"
    yield f"{folder}/file/out"
    yield f"{folder}/{'x' * 300}"
    yield "/dev/null/out"
    yield "/proc/pairmill"
    yield "/proc/pairmill/out"
    yield "/sys/pairmill"


def test_an_output_that_cannot_be_a_folder_is_reported_in_one_line_with_its_path_and_a_remedy(tmp_path: Path) -> None:
    for output in awkward(tmp_path):
        starts = [
            lambda output=output: prepare(job(tmp_path, Path(output))),
            lambda output=output: prepare(job(tmp_path, Path(output), "corpus")),
            lambda output=output: run_demo(output, 8, 0, False),
            lambda output=output: (check_export_folder(Store(output)), Store(output).create("a", b"")),
        ]
        for start in starts:
            with pytest.raises(PairmillError) as caught:
                start()
            text = str(caught.value)
            assert text.count("\n") == 0
            assert re.search(r"is a file, not a folder|use another output", text), text
            assert output in text or "is a file" in text


@pytest.mark.parametrize("name", ["file/a", "file/deep/a", f"{'x' * 300}"])
def test_a_file_in_place_of_a_needed_folder_is_a_storage_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    store = Store(str(tmp_path))
    for write in (store.create, store.replace):
        with pytest.raises(StorageError, match=r"cannot be created \(.+\); check its folder") as raised:
            write(name, b"x")
        assert Failure.of(raised.value).kind is FailureKind.STORAGE


@pytest.mark.parametrize("code", sorted(LOCAL_ERRNOS | {errno.ENOSPC, errno.EIO, errno.ESTALE}))
def test_a_file_that_cannot_be_opened_is_blamed_on_the_machine_or_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fails(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", fails)
    with pytest.raises(OSError, match=r"\S") as raised:
        Store(str(tmp_path)).create("a", b"")
    expected = FailureKind.MACHINE if code in LOCAL_ERRNOS else FailureKind.STORAGE
    assert Failure.of(raised.value).kind is expected


def test_drivers_that_start_at_the_same_time_are_all_accepted(tmp_path: Path) -> None:
    """Each driver sees some files of the other drivers: converted input, a plan, or the first shards."""
    for attempt in range(8):
        what, drivers = job(tmp_path, tmp_path / f"out{attempt}"), 4
        start = threading.Barrier(drivers)

        def run(what: BuildJob = what, start: threading.Barrier = start) -> object:
            start.wait()
            _, plan = prepare(what)
            Store(what.output).create("pairs/000000000.parquet", b"")
            return plan.shards

        with ThreadPoolExecutor(drivers) as pool:
            plans = [each.result() for each in [pool.submit(run) for _ in range(drivers)]]
        assert all(plan == plans[0] for plan in plans)


SPELLINGS = ["in", "./in", "in/", "deep/../in", ".//in/.", "{cwd}/in", "file://{cwd}/in/", "file://{cwd}/deep/../in"]


@pytest.mark.parametrize("path", ["in", "in/list.csv"])
def test_a_source_is_the_same_in_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """A run can be resumed with any spelling of its paths, and several spellings count as one source."""
    for name in ("in", "deep"):
        (tmp_path / name).mkdir()
    (tmp_path / "in/list.csv").write_text("url,caption\n" + "".join(f"http://e.org/{n},a\n" for n in range(9)))
    monkeypatch.chdir(tmp_path)
    spelled = [spelling.format(cwd=tmp_path).rstrip("/.") + path.removeprefix("in") for spelling in SPELLINGS]
    spelled += [spelling.format(cwd=tmp_path) for spelling in SPELLINGS if path == "in"]

    def planned(paths: list[str], output: str) -> Plan:
        made = BuildJob.model_validate({"source": {"paths": paths}, "output": output})
        plan = prepare(made)[1]
        assert plan.job.source.paths == [str(tmp_path / path)] * len(paths)
        return plan

    plans = [planned([each], "out") for each in spelled]
    assert all(plan == plans[0] for plan in plans)
    assert planned(spelled, "all").num_rows == plans[0].num_rows == 9
    for each in spelled:
        assert list_path(each, Files()).files == [str(tmp_path / "in/list.csv")]
        with pytest.raises(FileNotFoundError, match=rf"no input found at {tmp_path}/in(/list.csv)?x$"):
            list_path(f"{each.rstrip('/.')}x", Files())


def test_a_dataset_is_continued_with_the_dtype_it_was_started_with_wherever_it_is_continued(tmp_path: Path) -> None:
    def prepared(output: str, dtype: str = "auto", address: str | None = None) -> BuildJob:
        values = job(tmp_path, tmp_path / output).model_dump(exclude_unset=True)
        models = [{"name": "tiny", "dtype": dtype}]
        return prepare(BuildJob.model_validate({**values, "models": models, "run": {"address": address}}))[0].job

    assert prepared("local").models[0].dtype == "float32"
    assert prepared("local", address="auto").models[0].dtype == "float32"
    assert prepared("gpu", "bfloat16").models[0].dtype == "bfloat16"
    assert prepared("gpu").models[0].dtype == "bfloat16"
    with pytest.raises(JobError, match=r"models: .*'bfloat16'.* in that job.*'float32'"):
        prepared("gpu", "float32")
    prepared("cluster", address="auto")
    with pytest.raises(
        JobError, match=r"models: .*'auto'.* in that job.*'float32'"
    ):  # its GPUs may have used the other
        prepared("cluster")


def test_verify_tells_users_to_delete_only_stray_files_of_pairmill(tmp_path: Path) -> None:
    manifest = writer(tmp_path).commit(in_flight(["ok", "timeout"], [True, False]))
    named = {file.path for file in manifest.files.values()}
    ours = ["pairs/000000007.g1.parquet", "rejects/000000008.parquet", f"images/000000007.{'0' * 32}.tar"]
    for name, like in zip(ours, ("pairs", "rejects", "images"), strict=True):
        (tmp_path / name).write_bytes((tmp_path / f"{like}/000000007.{name.rpartition('.')[2]}").read_bytes())
    pq.write_table(pa.table({"a": [1]}), tmp_path / "pairs" / "000000009.parquet")
    foreign = [
        "pairs/list.csv",
        "images/cat.jpg",
        "images/00000.tar",
        "images/000000010.tar",
        "rejects/000000011.parquet",
    ]
    fill(tmp_path, [*foreign, "pairs/.DS_Store", "pairs/_SUCCESS"])
    found = dict(problem.split(" ", 1) for problem in foreign_files(Store(str(tmp_path)), named))
    assert {name for name, text in found.items() if "delete" in text} == set(ours)
    assert {name for name, text in found.items() if "is not pairmill's" in text} == {
        *foreign,
        "pairs/000000009.parquet",
    }
    assert len(found) == len(ours) + len(foreign) + 1


def test_the_cleanup_of_a_run_deletes_no_foreign_file(tmp_path: Path) -> None:
    """Foreign files include some with names similar to those of a crashed attempt."""
    store = Store(str(tmp_path))
    store.create("pairs/000000007.parquet", b"a dead attempt's")
    manifest = writer(tmp_path).commit(in_flight(["ok"], [True]))
    fill(tmp_path, ["pairs/7.parquet", "pairs/00007.parquet", "images/7.tar", "pairs/7.g0.parquet"])
    assert StrayFiles(store).remove(manifest) == ["pairs/000000007.parquet"]
    assert store.exists("pairs/00007.parquet")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"subset_attempt": "b"},
            r"another export \(of the subset 'some' before it was selected again, .* no longer needed\)",
        ),
        ({"samples_per_file": 5}, r"another export \(samples_per_file 10, not 5\)"),
    ],
)
def test_a_folder_with_another_export_is_refused_saying_how_that_export_differs(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    values = {"dataset": "d", "subset": "some", "subset_attempt": "a", "format": "webdataset", "samples_per_file": 10}
    record = ExportRecord(**values, shuffle_seed=0, columns=[], rows=1, num_files=1)
    claim_output(Store(str(tmp_path)), ".pairmill", record)
    with pytest.raises(JobError, match=f"{says}; choose another folder$"):
        claim_output(Store(str(tmp_path)), ".pairmill", record.model_copy(update=change))


def test_an_output_whose_plan_folder_is_empty_can_be_used(tmp_path: Path) -> None:
    """A run leaves such a folder behind if it is killed, or the disk becomes full, after it made the folder and before
    it wrote the plan."""
    (tmp_path / "out/plan").mkdir(parents=True)
    (tmp_path / "out/tmp").mkdir()
    check_dataset_folder(Store(str(tmp_path / "out")))
    (tmp_path / "out/plan/mine").mkdir()
    with pytest.raises(JobError, match="it contains plan/"):
        check_dataset_folder(Store(str(tmp_path / "out")))
