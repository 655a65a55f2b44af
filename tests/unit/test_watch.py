"""Tests watching a job from another process: every new shard is reported once, and the end is detected."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pairmill.jobs.cli import watch as watch_module
from pairmill.jobs.cli.main import app
from pairmill.jobs.cli.watch import FIRST_SHARD_S, CommitClock, watch
from pairmill.jobs.progress import ConsoleProgress
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.planned import PlanError
from pairmill.schemas.manifest import ShardManifest
from tests.synthetic_dataset import write_dataset


class Told(ConsoleProgress):
    def __init__(self) -> None:
        super().__init__()
        self.shards_told: list[int] = []
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def committed(self, manifest: ShardManifest) -> None:
        super().committed(manifest)
        self.shards_told.append(manifest.shard)


def test_shards_are_reported_once_as_they_are_committed_and_the_end_is_detected(tmp_path: Path) -> None:
    whole, growing = tmp_path / "whole", tmp_path / "growing"
    write_dataset(whole, 1_000, shard_rows=100)
    shutil.copytree(whole, growing)
    manifests = sorted((growing / "manifests").iterdir())
    for path in manifests[3:]:
        path.unlink()

    def work() -> None:
        for path in manifests[3:]:
            time.sleep(0.05)
            (whole / "manifests" / path.name).rename(path)  # appears in one step, as a commit does

    told = Told()
    thread = threading.Thread(target=work)
    thread.start()
    result = watch(Store(str(growing)), told, 0.02)
    thread.join()
    assert told.shards_told == list(range(3, 10))
    assert (result.shards, result.shards_missing, result.input_rows) == (10, [], 1_000)
    assert told.said == ["300 rows done; 700 in 7 shards to go"]


def test_the_command_ends_immediately_if_everything_is_done(tmp_path: Path) -> None:
    write_dataset(tmp_path / "out", 200, shard_rows=100)
    done = CliRunner().invoke(app, ["status", str(tmp_path / "out"), "--watch", "--json"])
    assert done.exit_code == 0
    assert "2 of 2 shards, 200 rows done" in done.output


@pytest.mark.parametrize("seconds", ["inf", "nan", "1e10", "0"])
def test_a_time_between_checks_that_cannot_be_waited_for_is_refused(tmp_path: Path, seconds: str) -> None:
    write_dataset(tmp_path / "out", 200, shard_rows=100)
    (tmp_path / "out" / "manifests" / "000000001.json").unlink()
    done = CliRunner().invoke(app, ["status", str(tmp_path / "out"), "--watch", "--every", seconds])
    assert done.exit_code == 2 and "--every" in done.output


def test_a_folder_that_is_not_an_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="has no plan"):
        watch(Store(str(tmp_path)), Told(), 0.1)


class Clock:
    now = 500.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time_of_day(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch_module, "time", clock)
    return clock


def test_silence_is_reported_after_ten_intervals_without_a_commit_and_whenever_the_wait_has_doubled(
    time_of_day: Clock,
) -> None:
    commits = CommitClock(shard_s=10_000.0, started=time_of_day.now)
    for _ in range(5):
        time_of_day.now += 20
        commits.tick(2)
    assert commits.usual_s == pytest.approx(80 / 9)
    said = []
    for second in range(1, 400):
        time_of_day.now += 1
        commits.tick(0)
        if text := commits.silence:
            said.append((second, text))
    assert [second for second, _ in said] == [89, 178, 356]
    assert said[0][1].startswith(
        "no shard has been committed for 89 s, although one came every 9 s: the job has ended or hangs;"
    )
    commits.tick(1)
    assert commits.silence is None


class Sleeping(Clock):
    """A clock that advances only in `sleep`, which also calls `happens`."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self.happens = happens

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.happens()


def test_watching_reports_that_no_more_shards_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, growing = tmp_path / "whole", tmp_path / "growing"
    write_dataset(whole, 1_000, shard_rows=100)
    shutil.copytree(whole, growing)
    names = [path.name for path in sorted((growing / "manifests").iterdir())]
    for name in names:
        (growing / "manifests" / name).unlink()

    def commit() -> None:
        """Commit a shard every 20 s; after five shards, pause until 1,000 s have passed."""
        at = clock.now - Clock.now
        if (at % 20 == 0 and at <= 100) or at > 1_000:
            shutil.copy(whole / "manifests" / names.pop(0), growing / "manifests")

    clock = Sleeping(commit)
    monkeypatch.setattr(watch_module, "time", clock)
    watch(Store(str(growing)), told := Told(), 10.0)
    usual = "one came every 20 s: the job has ended or hangs; run its command again to resume"
    silences = [text for text in told.said if text.startswith("no shard has been committed for ")]
    assert silences == [
        f"no shard has been committed for {silent}, although {usual}" for silent in ("3 min", "7 min", "13 min")
    ]


def test_before_the_first_commit_silence_is_judged_by_the_time_per_shard(time_of_day: Clock, tmp_path: Path) -> None:
    slow = CommitClock(shard_s=120.0, started=time_of_day.now)
    unknown = CommitClock.of([])
    time_of_day.now += 10 * FIRST_SHARD_S
    assert slow.silence is None
    assert "no shard has been committed for 10 min, although one takes 60 s" in (unknown.silence or "")
    time_of_day.now += 10 * 60
    assert "no shard has been committed for 20 min, although one takes 2 min" in (slow.silence or "")


def test_a_fast_job_may_pause_for_half_a_minute_without_a_report(time_of_day: Clock) -> None:
    fast = CommitClock(shard_s=0.1, started=time_of_day.now)
    time_of_day.now += 29
    assert fast.silence is None
    time_of_day.now += 1
    assert fast.silence
