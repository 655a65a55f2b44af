"""Tests that each command shows its progress: the steps that it reports appear on stderr."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pairmill.jobs import progress
from pairmill.jobs.cli.main import app
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.progress import WorkCounts
from pairmill.schemas.errors import FailureKind
from tests.synthetic_dataset import write_dataset
from tests.unit.test_verify import NUM_SHARDS, write_with_pictures


@pytest.fixture(autouse=True)
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print every progress line, even right after the previous one."""
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)


@pytest.fixture
def three_rows_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the run on Ray with a function that reports three rows in progress and the failure of the first shard."""

    def run_shards(
        shards: pa.Table,
        pipeline: object,
        on_outcome: Callable[[Any], None],
        on_work: Callable[[Mapping[str, WorkCounts]], None],
        modules: object,
    ) -> None:
        from pairmill.jobs.cluster.lost_shards import Outcome

        on_work({"load": WorkCounts(0, 3, 0, 3, 3, 1_000)})
        on_outcome(Outcome(shards["shard"][0].as_py(), Failure(FailureKind.SHARD, "boom", "boom")))

    monkeypatch.setattr("pairmill.jobs.cluster.run_shards.run_shards", run_shards)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def steps(done: Result) -> dict[str, list[str]]:
    """Step -> the counts that were shown, such as `1/3`."""
    assert done.exit_code == 0, done.output
    found: dict[str, list[str]] = {}
    for name, part in re.findall(r"^(.+)  (\d+/\d+)$", done.stderr, re.MULTILINE):
        found.setdefault(name, []).append(part)
    return found


def test_select_shows_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 200)
    write_dataset(tmp_path / "out", 600, shard_rows=100)
    for arguments in (["--step", "top: {by: similarity, count: 100}"], ["--refresh"]):
        shown = steps(run("select", tmp_path / "out", "some", *arguments))
        assert {"reading manifests", "dedup: by uid", "top: by similarity, count 100", "writing"} <= {*shown}
        assert shown["reading manifests"] == shown["writing"] == ["1/3", "2/3", "3/3"]


def test_export_and_verify_show_their_steps(tmp_path: Path) -> None:
    write_with_pictures(tmp_path / "out")
    assert steps(run("verify", tmp_path / "out", "--rescore", 0)) == {"reading shards": ["0/2", "1/2"]}
    steps(run("select", tmp_path / "out", "some"))
    exported = run("export", tmp_path / "out", "some", tmp_path / "tars")
    assert steps(exported) == {"writing webdataset": ["1/1"]}


@pytest.mark.usefixtures("three_rows_in_progress")
def test_embed_shows_its_plan_progress_and_failures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(8):
        Image.new("RGB", (8, 8)).save(tmp_path / f"in/{number}.png")
    done = run("embed", tmp_path / "in", tmp_path / "out", "--model", "tiny")
    assert done.exit_code == 1
    assert re.search(r"^8 rows in 1 shard", done.stderr, re.MULTILINE)
    assert re.search(r"^3/8 rows .*pictures 100%$", done.stderr, re.MULTILINE)
    assert re.search(r"^shard 000000000 failed$", done.stderr, re.MULTILINE)


@pytest.mark.usefixtures("three_rows_in_progress")
def test_adding_a_model_shows_its_plan_progress_and_failures(tmp_path: Path) -> None:
    write_with_pictures(tmp_path / "out")
    done = run("embed", tmp_path / "out", "--add-model", "tiny")
    assert done.exit_code == 1
    assert re.search(rf"^adding tiny to {NUM_SHARDS} of {NUM_SHARDS} shards$", done.stderr, re.MULTILINE)
    assert re.search(r"^3/4 rows .*pictures 100%$", done.stderr, re.MULTILINE)
    assert re.search(r"^shard 000000000 failed$", done.stderr, re.MULTILINE)


@pytest.mark.usefixtures("three_rows_in_progress")
def test_build_prints_the_delimiter_that_it_detected(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("url;caption\n" + "".join(f"http://e.org/{n};a cat\n" for n in range(9)))
    done = run("build", tmp_path / "in.csv", tmp_path / "out")
    assert "9 rows in 1 shard" in done.stderr
    assert "in.csv: fields separated by ';'" in done.stderr
    assert "3/9 rows" in done.stderr
    (tmp_path / "in.csv").write_text("url|caption\nhttp://e.org/1|a cat\n")
    assert "in.csv: fields separated by '|'" in run("build", tmp_path / "in.csv", tmp_path / "new", "--explain").stdout


def test_without_a_stderr_progress_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a daemon, or after `2>&-`."""
    monkeypatch.setattr("sys.stderr", None)
    listener = progress.ConsoleProgress()
    listener.planned("3 rows", 1, 3, 0)
    listener.working({})
