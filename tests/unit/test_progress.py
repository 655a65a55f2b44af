"""Tests progress within shards: workers count items, the driver adds up the counts, and a line in a terminal, log or
notebook shows the sums."""

import io
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from pairmill.jobs import live_line
from pairmill.jobs import progress as progress_module
from pairmill.jobs.cluster import live
from pairmill.jobs.cluster.live import LiveWorkers
from pairmill.jobs.live_line import RunState, duration, size
from pairmill.jobs.progress import ColumnsProgress, ConsoleProgress, NotebookProgress, ProgressListener
from pairmill.pipeline.common.progress import WorkCounts, WorkProgress
from pairmill.schemas.manifest import ShardManifest


class Clock:
    """Replaces the `time` module in the modules under test."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (live, live_line, progress_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def manifest(shard: int = 0, **statuses: int) -> ShardManifest:
    rows, ok = sum(statuses.values()), statuses.get("ok", 0)
    counts = {"num_rows": rows, "rows_in": rows, "pairs": ok, "rejects": rows - ok, "kept": ok, "bytes_fetched": 0}
    more = {"uri": "", "first_row": 0, "job_fingerprint": "", "files": {}, "seconds": {}, "versions": {}}
    return ShardManifest(shard=shard, attempt="", statuses=statuses, **counts, **more)  # type: ignore[arg-type]


# What workers count


def test_rows_of_an_open_shard_grow_with_its_items_and_are_complete_once_it_is_done() -> None:
    progress = WorkProgress()
    progress.in_flight = lambda: 7
    with progress.shard(rows=100) as shard:
        shard.expect(50)
        for item in range(10):
            shard.done(good_items=item % 2, num_bytes=1_000)
        assert progress.counts() == WorkCounts(0, 20, 7, 10, 5, 10_000)
    assert progress.counts() == WorkCounts(100, 0, 7, 10, 5, 10_000)


def test_a_shard_that_fails_adds_no_rows() -> None:
    progress = WorkProgress()
    with pytest.raises(ValueError, match="broken"), progress.shard(rows=100) as shard:
        shard.expect(10)
        shard.done()
        raise ValueError("broken")
    assert (progress.counts().rows, progress.counts().items) == (0, 1)


def test_a_shard_without_items_is_counted_when_it_ends() -> None:
    progress = WorkProgress()
    with progress.shard(rows=9) as shard:
        shard.expect(0)
        assert progress.counts().rows == 0
    assert progress.counts().rows == 9


def test_no_count_is_lost_between_threads() -> None:
    progress = WorkProgress()

    def work() -> None:
        with progress.shard(rows=1_000) as shard:
            shard.expect(1_000)
            for _ in range(1_000):
                shard.done(num_bytes=3)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert progress.counts().rows <= 8_000
    assert progress.counts() == WorkCounts(8_000, 0, 0, 8_000, 8_000, 24_000)


# What the driver asks


class Asked:
    """A worker that answers only when told to."""

    def __init__(self) -> None:
        self.questions: list[Future[WorkCounts]] = []

    def __call__(self) -> "Future[WorkCounts]":
        self.questions.append(Future())
        return self.questions[-1]

    def answer(self, **counts: int) -> None:
        self.questions[-1].set_result(WorkCounts(**counts))


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def workers(clock: Clock, told: list[Any]) -> LiveWorkers:
    return LiveWorkers(told.append)


@pytest.fixture
def tick(clock: Clock, workers: LiveWorkers) -> Callable[[], None]:
    def next_round() -> None:
        clock.now += live.INTERVAL_S
        workers.tick()

    return next_round


def test_answers_are_summed_by_stage_without_waiting_for_silent_workers(
    workers: LiveWorkers, told: list[Any], tick: Callable[[], None]
) -> None:
    one, other, silent, encoder = Asked(), Asked(), Asked(), Asked()
    for number, worker in enumerate((one, other, silent)):
        workers.add(number, "download", worker)
    workers.add(3, "encode", encoder)
    tick()
    one.answer(open_rows=10, in_flight=3)
    other.answer(finished_rows=100, open_rows=5)
    encoder.answer(items=4)
    tick()
    assert told[-1]["download"] == WorkCounts(100, 15, 3)
    assert told[-1]["encode"].items == 4
    assert len(silent.questions) == 1  # it has not answered the first question


def test_only_the_finished_work_of_a_dead_worker_is_counted(
    workers: LiveWorkers, told: list[Any], tick: Callable[[], None]
) -> None:
    worker = Asked()
    workers.add("w", "download", worker)
    tick()
    worker.answer(finished_rows=100, open_rows=50, in_flight=9)
    tick()
    worker.questions[-1].set_exception(RuntimeError("it died"))
    tick()
    assert told[-1]["download"].rows == 150  # the last known counts
    workers.remove("w")
    workers.remove("w")
    tick()
    assert told[-1]["download"] == WorkCounts(100)


def test_thousands_of_workers_are_asked_in_turn(workers: LiveWorkers, tick: Callable[[], None]) -> None:
    asked = [Asked() for _ in range(3 * live.MAX_QUESTIONS)]
    for number, worker in enumerate(asked):
        workers.add(number, "download", worker)
    for expected in (1, 2, 3):
        tick()
        assert sum(len(worker.questions) for worker in asked) == expected * live.MAX_QUESTIONS
    assert all(len(worker.questions) == 1 for worker in asked)


def test_ticks_within_one_interval_do_nothing(workers: LiveWorkers, told: list[Any], tick: Callable[[], None]) -> None:
    tick()
    for _ in range(100):
        workers.tick()
    assert len(told) == 1


# What the line says


def downloading(rows: int, in_flight: int = 64, num_bytes: int = 0, good: int | None = None) -> dict[str, WorkCounts]:
    return {"download": WorkCounts(0, rows, in_flight, rows, rows if good is None else good, num_bytes)}


def test_the_line_shows_progress_within_a_shard(clock: Clock) -> None:
    state = RunState(rows_left=600, shards_left=1)
    state.update(downloading(0))
    clock.now += 10
    state.update(downloading(200, num_bytes=30_000_000, good=150))
    assert state.line(200) == "200/600 rows  20/s  20 s left  64 in flight  3.0 MB/s  pictures 75%"


def test_the_slowest_stage_determines_the_time_left(clock: Clock) -> None:
    state = RunState(rows_left=1_000, shards_left=2)
    for second in range(11):
        state.update({**downloading(100 * second, in_flight=5), "encode": WorkCounts(0, 10 * second, 0, 10 * second)})
        clock.now += 1
    assert state.line(200).startswith("100/1,000 rows  10/s  2 min left  5 in flight  fetched 1,000")


def test_the_number_of_rows_never_decreases_when_a_later_stage_begins_to_count(clock: Clock) -> None:
    state = RunState(rows_left=1_000, shards_left=2)
    state.update(downloading(680))
    assert state.line(200).startswith("680/1,000 rows")
    state.update({**downloading(700), "encode": WorkCounts(0, 20, 0, 20)})
    assert state.line(200).startswith("680/1,000 rows")
    state.update({**downloading(1_000), "encode": WorkCounts(0, 800, 0, 800)})
    assert state.line(200).startswith("800/1,000 rows")


@pytest.mark.parametrize("reported", [10, 90, 100])
def test_the_line_never_shows_fewer_fetched_rows_than_committed_rows(clock: Clock, reported: int) -> None:
    state = RunState(rows_left=100, shards_left=1)
    state.update({**downloading(reported, in_flight=1), "encode": WorkCounts(0, reported, 0, reported)})
    state.commit(manifest(0, ok=60, timeout=40))
    assert "fetched 100" in state.line(200)


def test_rates_cover_only_the_last_seconds(clock: Clock) -> None:
    state = RunState(rows_left=100_000, shards_left=1)
    for second in range(100):
        state.update(downloading(1_000 * min(second, 10) + second))
        clock.now += 1
    assert "  1/s  " in state.line(200)


def test_shares_and_losses_cover_only_committed_shards(clock: Clock) -> None:
    state = RunState(rows_left=400, shards_left=4)
    state.commit(manifest(ok=60, timeout=30, http_4xx=10))
    clock.now += 10
    state.commit(manifest(ok=80, timeout=20))
    line = state.line(200)
    assert line == "200/400 rows  10/s  20 s left  pairs 70%  kept 70%  2/4 shards  lost: timeout 50  http_4xx 10"


@pytest.mark.parametrize("width", range(20, 140))
def test_a_line_that_is_too_long_loses_only_whole_parts(width: int, clock: Clock) -> None:
    state = RunState(rows_left=4_000_000, shards_left=900)
    state.commit(manifest(ok=60, timeout=30))
    state.update(downloading(0))
    clock.now += 10
    state.update(downloading(3_000_000, num_bytes=10**9))
    whole, part = state.line(1_000), state.line(width)
    assert len(part) <= width
    left = iter(whole.split("  "))
    assert part == "" or all(each in left for each in part.split("  "))  # whole parts, in the same order
    if width >= 59:
        assert "in flight" in part
        assert "kept" in part


def test_at_60_columns_the_line_shows_the_kept_share_and_progress_within_a_shard(clock: Clock) -> None:
    state = RunState(rows_left=40_960, shards_left=10)
    state.update(downloading(0))
    clock.now += 10
    state.update(downloading(2_000, in_flight=256, num_bytes=123_000_000, good=1_500))
    assert state.line(59) == "2,000/40,960 rows  256 in flight  12.3 MB/s  pictures 75%"
    state.commit(manifest(ok=3_000, timeout=1_096))
    state.update({**downloading(6_000, in_flight=256, num_bytes=246_000_000), "encode": WorkCounts(0, 5_000, 0, 5_000)})
    line = state.line(59)
    assert line == "5,000/40,960 rows  256 in flight  24.6 MB/s  kept 73%"
    assert state.line(10_000).startswith("5,000/40,960 rows  ")
    assert {*line.split("  ")} < {*state.line(10_000).split("  ")}


def test_as_the_line_grows_the_time_left_is_added_before_the_rate_and_losses_are_added_last(clock: Clock) -> None:
    state = RunState(rows_left=400, shards_left=4)
    state.commit(manifest(ok=60, timeout=30, http_4xx=10))
    clock.now += 10
    state.commit(manifest(ok=80, timeout=20))
    seen = {state.line(width) for width in range(20, 200)}
    assert "200/400 rows  20 s left  kept 70%" in seen
    assert "200/400 rows  10/s  20 s left  kept 70%" in seen
    assert "200/400 rows  10/s  20 s left  pairs 70%  kept 70%  2/4 shards  lost: timeout 50" in seen
    assert not any("timeout" in line and "2/4 shards" not in line for line in seen)


def test_rows_that_were_fetched_twice_are_not_counted_twice(clock: Clock) -> None:
    state = RunState(rows_left=100, shards_left=1)
    state.update(downloading(130))
    assert state.line(100).startswith("100/100 rows")


def test_durations_and_sizes_are_short() -> None:
    assert [duration(seconds) for seconds in (5, 89, 600, 7_200)] == ["5 s", "89 s", "10 min", "2.0 h"]
    assert [size(n) for n in (12, 1_500, 950_000, 12_500_000, 3e9)] == ["12 B", "1.5 kB", "950 kB", "12.5 MB", "3.0 GB"]


# How the line is shown


def test_a_terminal_has_one_line_that_is_overwritten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    listener = ConsoleProgress(stream := Terminal())
    listener.planned("600 rows in 1 shard", 1, 600, 0)
    for rows in (100, 200, 300):
        clock.now += 1
        listener.working(downloading(rows))
    listener.failed(7, "boom")
    listener.close()
    listener.close()
    written = stream.getvalue()
    lines = written.split("\r\x1b[2K")
    assert [line.split(" rows")[0] for line in lines[1:4]] == ["100/600", "200/600", "300/600"]
    assert lines[4].startswith("shard 000000007 failed\n300/600 rows")  # above the live line, which stays
    assert written.endswith(" in flight  pictures 100%\n")
    assert max(len(line) for line in re.split(r"\n|\r\x1b\[2K", written)) < 60


def test_a_log_gets_at_most_a_line_every_five_seconds_and_no_line_twice(clock: Clock) -> None:
    listener = ConsoleProgress(stream := io.StringIO())
    listener.planned("600 rows in 1 shard", 1, 600, 0)
    said = len(stream.getvalue().splitlines())
    for second in range(60):
        clock.now += 1
        listener.working(downloading(min(10 * second, 300)))
        if second == 30:
            listener.committed(manifest(ok=80))
    lines = stream.getvalue().splitlines()[said:]
    assert 6 <= len(lines) <= 12
    assert len(set(lines)) == len(lines)
    assert "\r" not in stream.getvalue()


def test_a_log_gets_the_last_line_of_a_short_run(clock: Clock) -> None:
    listener = ConsoleProgress(stream := io.StringIO())
    listener.planned("2 shards", 2, 200, 0)
    listener.committed(manifest(0, ok=100))
    listener.committed(manifest(1, ok=100))
    assert "100/200 rows" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].startswith("200/200 rows")


def test_steps_are_shown_with_their_parts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    listener = ConsoleProgress(stream := Terminal())
    for done in range(1, 4):
        clock.now += 1
        listener.step("dedup: by phash, distance 4, best similarity_a + similarity_b + 2 * width", done, 1_234)
    assert stream.getvalue().endswith("  3/1,234")
    listener.close()
    assert stream.getvalue().endswith("\r\x1b[2K")  # the line is erased
    assert max(len(line) for line in re.split(r"\n|\r\x1b\[2K", stream.getvalue())) == 59


def test_a_notebook_gets_no_terminal_codes_and_no_remains_of_a_longer_line(clock: Clock) -> None:
    listener = NotebookProgress(stream := io.StringIO())
    listener.planned("600 rows", 1, 600, 0)
    clock.now += 1
    listener.step("a long name of a step", 1, 2)
    clock.now += 1
    listener.step("short", 2, 2)
    listener.failed(3, "boom")
    listener.close()
    assert "\x1b" not in stream.getvalue()
    screen: list[str] = []
    for line in stream.getvalue().split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        screen.append(shown.rstrip())
    assert screen[-2:] == ["shard 000000003 failed", ""]


def test_a_custom_listener_may_omit_methods() -> None:
    class Mine(ProgressListener):
        done = 0

        def committed(self, manifest: ShardManifest) -> None:
            self.done += 1

    mine = Mine()
    mine.planned("", 1, 1, 0)
    mine.working({})
    mine.committed(manifest(ok=1))
    mine.failed(1, "")
    assert mine.done == 1


def test_a_run_that_adds_columns_shows_no_losses_or_warnings_about_the_original_run(
    clock: Clock,
) -> None:
    stream = Terminal()
    console = ConsoleProgress(stream)
    columns = ColumnsProgress(console)
    columns.planned("look for 2 shards", 2, 20, 0)
    for _ in range(2):
        clock.now += 5
        columns.committed(manifest(ok=4, timeout=6))
    console.close()
    assert "20/20 rows  2/s  2/2 shards" in stream.getvalue()
    assert not re.search("lost|timeout|kept|pairs|warning", stream.getvalue())


def test_two_shards_that_end_within_a_second_have_no_rate(clock: Clock) -> None:
    state = RunState(rows_left=20, shards_left=3)
    for seconds in (0.0, 0.01):
        clock.now += seconds
        state.commit(manifest(ok=10))
    assert "/s" not in state.line(100)
    clock.now += 2
    state.commit(manifest(ok=10))
    assert "/s" in state.line(100)
