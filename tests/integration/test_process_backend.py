"""Tests workers on this machine: they die with their driver, their deaths are reported, and nothing of them remains."""

import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

import pairmill
from pairmill.jobs.build import build, prepare
from pairmill.jobs.cluster.arrow_ipc import pack
from pairmill.jobs.cluster.fork_server import WorkerProcess, fork_server, started_ahead
from pairmill.jobs.cluster.live import LiveWorkers
from pairmill.jobs.cluster.pools import Pool
from pairmill.jobs.cluster.process_backend import ProcessBackend
from pairmill.jobs.cluster.shared_bytes import SharedBytes
from pairmill.jobs.cluster.worker_backend import Report, WorkerDied
from pairmill.schemas.batch import planned_batches
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import job, picture, write_input
from tests.integration.test_command import PAIRMILL, build_arguments, run, start
from tests.integration.test_run_shards import SlowWeb

FETCH = {"allow_networks": ["127.0.0.0/8"]}


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if another test of this process has started it."""
    for module in ("machines", "fork_server"):
        monkeypatch.setattr(f"pairmill.jobs.cluster.{module}.uses_ray", lambda: False)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[ProcessBackend]:
    source = write_input(tmp_path / "in.parquet", [{"url": "http://127.0.0.1:9/1.jpg", "caption": "one"}])
    pipeline, _ = prepare(job(source, tmp_path / "out"))
    with fork_server() as server:
        backend = ProcessBackend(pipeline, LiveWorkers(lambda _: None), server, None, ["3", "5"])
        yield backend
        backend.close()


def payload_of(tmp_path: Path) -> pa.Buffer:
    _, plan = prepare(job(tmp_path / "in.parquet", tmp_path / "out"))
    return pack(next(planned_batches(plan.shards)))


def outcome(backend: ProcessBackend, token: Any) -> Report:
    while token not in backend._done:
        backend.wait(1)
    return backend.result(token)


def open_files() -> int:
    """Number of payloads and selectors that this process has open."""
    links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("memfd:pairmill" in link or "eventpoll" in link for link in links)


def servers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "fork_server_program" in " ".join(child.cmdline())]


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [worker for server in servers_of(process) for worker in server.children()]


def test_a_killed_worker_ends_all_of_its_calls_and_the_reason_is_told(backend: ProcessBackend, tmp_path: Path) -> None:
    worker, started = backend.start("read", Pool(1, 0.2))
    assert outcome(backend, started) == Report(node="here")
    os.kill(worker.process.pid, signal.SIGSTOP)
    tokens = [backend.call(worker, [payload_of(tmp_path)])[0] for _ in range(2)]
    os.kill(worker.process.pid, signal.SIGKILL)
    for token in tokens:
        with pytest.raises(WorkerDied, match=r"^killed by SIGKILL: is there enough memory\?"):
            outcome(backend, token)
    backend.stop(worker)
    token, _ = backend.call(worker, [payload_of(tmp_path)])  # as the scheduler might, before it knows
    with pytest.raises(WorkerDied):
        outcome(backend, token)


def test_a_stopped_worker_is_gone_and_its_calls_are_lost(backend: ProcessBackend, tmp_path: Path) -> None:
    worker, started = backend.start("read", Pool(1, 0.2))
    token, _ = backend.call(worker, [payload_of(tmp_path)])
    backend.stop(worker)
    assert not psutil.pid_exists(worker.process.pid)
    for each in (started, token):
        with pytest.raises(WorkerDied, match="stopped"):
            outcome(backend, each)


def test_a_result_goes_to_the_next_worker_without_the_driver_reading_it(
    backend: ProcessBackend, tmp_path: Path
) -> None:
    reader, _ = backend.start("read", Pool(1, 0.2))
    downloader, _ = backend.start("download", Pool(1, 0.2))
    token, read = backend.call(reader, [payload_of(tmp_path)])
    report = outcome(backend, token)
    assert report.num_bytes == os.fstat(read.data.file).st_size > 0
    token, downloaded = backend.call(downloader, [read])
    assert outcome(backend, token).num_bytes == downloaded.data.mapped().size
    for worker in (reader, downloader):
        backend.stop(worker)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(1.0, ["3", "5"]), (0.5, ["3", "5", "3", "5"]), (2.0, ["3,5"]), (0.0, ["", ""])],
)
def test_each_encoder_sees_only_the_gpus_that_it_takes(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch, share: float, expected: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    environments: list[Mapping[str, str]] = []
    fork = backend._server.fork

    def note(stage: str, environment: Mapping[str, str]) -> WorkerProcess:
        environments.append(environment)
        return fork(stage, environment)

    monkeypatch.setattr(backend._server, "fork", note)
    workers = [backend.start("read", Pool(1, 0.2, gpus=share))[0] for _ in expected]
    for worker in workers:
        backend.stop(worker)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == expected
    assert set(backend._gpus.values()) == {0.0}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_driver(tmp_path: Path, number: signal.Signals) -> None:
    with SlowWeb(60) as web:
        source = write_input(tmp_path / "in.parquet", web.rows(4))
        driver = start(build_arguments(source, tmp_path / "out"), tmp_path)
        while not web.most:
            time.sleep(0.05)
        workers = workers_of(psutil.Process(driver.pid))
        assert sorted(worker.name() for worker in workers) == ["commit", "download", "read"]
        workers += servers_of(psutil.Process(driver.pid))
        driver.send_signal(number)
        driver.communicate(timeout=30)
        _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_runs_leave_no_process_and_no_file_and_several_threads_can_run_one_each(
    web: PictureWeb, tmp_path: Path
) -> None:
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"{n}"} for n in range(12)]
    source = write_input(tmp_path / "in.parquet", rows)
    build(job(source, tmp_path / "first", shard_rows=4, fetch=FETCH))
    before = open_files()
    results: list[pairmill.BuildResult] = []

    def run(name: str) -> None:
        results.append(build(job(source, tmp_path / name, shard_rows=4, fetch=FETCH)))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.statuses for result in results] == [{"ok": 12}] * 2
    assert not servers_of(psutil.Process())
    assert open_files() == before


@pytest.mark.parametrize("home", ["/sys/home", "/dev/null"])
def test_a_build_on_this_machine_needs_no_home_folder(
    web: PictureWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    """Not even root can write to these."""
    monkeypatch.setenv("HOME", home)
    source = write_input(tmp_path / "in.parquet", [{"url": web.add("/1.jpg", picture(1)), "caption": "one"}])
    done = run(build_arguments(source, tmp_path / "out"), tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["statuses"] == {"ok": 1}, done.stderr


FORKING_RULE = """
import os, pathlib, signal, time
time.sleep(1)  # while the threads of the worker's other shards load the same module
import pyarrow as pa
from pairmill.pipeline.rules import at

@at("image")
def look(rows):
    try:
        pathlib.Path({marker!r}).touch(exist_ok=False)
    except FileExistsError:
        return pa.repeat(True, rows.num_rows)
    if fork := os.fork():
        pathlib.Path({marker!r}).write_text(str(fork))
        os.write(2, b"out of luck\\n")
        os.kill(os.getpid(), signal.SIGABRT)
    time.sleep(60)  # keeps everything open that the worker had open
    os._exit(0)
"""


def test_the_death_of_a_worker_is_noticed_and_told_though_a_fork_of_it_lives_which_ends_too(
    web: PictureWeb, tmp_path: Path
) -> None:
    (tmp_path / "forking.py").write_text(FORKING_RULE.format(marker=str(tmp_path / "marker")))
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"{n}"} for n in range(4)]
    source = write_input(tmp_path / "in.parquet", rows)
    rules = ["--set", "rules.custom=[forking:look]", "--set", "shard_rows=1"]
    started = time.monotonic()
    done = run(build_arguments(source, tmp_path / "out", *rules), tmp_path)
    assert time.monotonic() - started < 40
    assert json.loads(done.stdout.splitlines()[-1])["statuses"] == {"ok": 4}, done.stderr
    assert "died: killed by SIGABRT; it last wrote: out of luck" in done.stderr
    assert not psutil.pid_exists(int((tmp_path / "marker").read_text()))


def test_a_worker_that_is_busy_in_c_code_dies_with_its_driver_too(web: PictureWeb, tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(
        "import pathlib, re\n"
        "def look(rows):\n"
        f"    pathlib.Path({str(tmp_path / 'busy')!r}).touch()\n"
        "    re.match(r'(a+)+$', 'a' * 60 + 'b')  # holds the interpreter's lock for years\n"
    )
    source = write_input(tmp_path / "in.parquet", [{"url": web.add("/1.jpg", picture(1)), "caption": "one"}])
    driver = start(build_arguments(source, tmp_path / "out", "--set", "rules.custom=[busy:look]"), tmp_path)
    while not (tmp_path / "busy").exists():
        time.sleep(0.05)
    workers = workers_of(psutil.Process(driver.pid))
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert len(workers) == 3 and not alive


def test_the_users_default_timeout_of_sockets_does_not_matter(web: PictureWeb, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.parquet", [{"url": web.add("/1.jpg", picture(1)), "caption": "one"}])
    socket.setdefaulttimeout(0.01)
    try:
        result = build(job(source, tmp_path / "out", fetch=FETCH))
    finally:
        socket.setdefaulttimeout(None)
    assert result.statuses == {"ok": 1}


def test_whatever_a_stage_raises_is_the_failure_of_its_shard(
    backend: ProcessBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even what is no Exception, such as a panic of Rust code: otherwise, the driver would wait forever."""
    worker, _ = backend.start("read", Pool(1, 0.2))
    token, _ = backend.call(worker, [b"no table"])
    assert outcome(backend, token).failure is not None
    gone = SharedBytes.of(b"")
    monkeypatch.setattr(SharedBytes, "of", lambda _: gone)  # nothing can be mapped
    token, _ = backend.call(worker, [b""])
    failure = outcome(backend, token).failure
    assert failure is not None and "mmap" in failure.message
    backend.close()


NOTING_RULES = """
import json, os, pathlib
import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_info
from pairmill.pipeline.rules import at

def note(rows):
    noted = {"user": os.environ.get("USER_SETTING"), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
             "threads": [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"],
             "drawn": np.random.random(), "command": pathlib.Path("/proc/self/cmdline").read_text().split(chr(0))}
    pathlib.Path(FOLDER, f"{os.getpid()}.json").write_text(json.dumps(noted))
    return pa.repeat(True, rows.num_rows)

@at("caption")
def note_in_reader(rows):
    return note(rows)

@at("image")
def note_in_downloader(rows):
    return note(rows)
"""


@pytest.mark.parametrize("has_thread", [False, True], ids=["forked", "spawned because of a thread"])
def test_workers_have_the_environment_of_the_driver_and_draw_different_numbers(
    web: PictureWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_thread: bool
) -> None:
    """Even if an agent that watches all Python processes has started a thread in them, so that they must not fork."""
    (tmp_path / "rules.py").write_text(NOTING_RULES.replace("FOLDER", repr(str(tmp_path))))
    if has_thread:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(
            "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("USER_SETTING", "kept")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    source = write_input(tmp_path / "in.parquet", [{"url": web.add("/1.jpg", picture(1)), "caption": "one"}])
    rules = "rules.custom=[rules:note_in_reader,rules:note_in_downloader]"
    done = run(build_arguments(source, tmp_path / "out", "--set", rules), tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["statuses"] == {"ok": 1}, done.stderr
    noted = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert [(each["user"], each["gpus"]) for each in noted] == [("kept", "")] * 2
    assert [set(each["threads"]) for each in noted] == [{2}] * 2
    assert len({each["drawn"] for each in noted}) == 2
    program = "process_worker" if has_thread else "fork_server_program"
    assert all(f"pairmill.jobs.cluster.{program}" in each["command"] for each in noted)


def test_shards_survive_the_death_of_the_process_that_starts_the_workers(tmp_path: Path) -> None:
    with SlowWeb(3) as web:
        source = write_input(tmp_path / "in.parquet", web.rows(4))
        driver = start(build_arguments(source, tmp_path / "out"), tmp_path)
        while not web.most:
            time.sleep(0.05)
        (server,) = servers_of(psutil.Process(driver.pid))
        workers = server.children()
        server.kill()
        stdout, stderr = driver.communicate(timeout=120)
        _, alive = psutil.wait_procs(workers, timeout=10)
    assert json.loads(stdout.splitlines()[-1])["statuses"] == {"ok": 4}, stderr
    assert len(workers) == 3 and not alive


def test_what_a_rule_has_started_ends_though_the_driver_was_killed(web: PictureWeb, tmp_path: Path) -> None:
    (tmp_path / "starting.py").write_text(
        "import pathlib, subprocess\n"
        "def look(rows):\n"
        "    started = subprocess.Popen(['sleep', '1000'])\n"
        f"    pathlib.Path({str(tmp_path / 'started')!r}).write_text(str(started.pid))\n"
        "    started.wait()\n"
    )
    source = write_input(tmp_path / "in.parquet", [{"url": web.add("/1.jpg", picture(1)), "caption": "one"}])
    driver = start(build_arguments(source, tmp_path / "out", "--set", "rules.custom=[starting:look]"), tmp_path)
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
        time.sleep(0.05)
    started = psutil.Process(int((tmp_path / "started").read_text()))
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs([started], timeout=10)
    assert not alive


def test_a_broken_installation_is_told_as_what_the_first_worker_would_have_said(
    web: PictureWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'pairmill.jobs.cluster.fork_server_program' in sys.orig_argv:\n"
        "    sys.modules['numpy'] = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    source = write_input(tmp_path / "in.parquet", [{"url": web.add("/1.jpg", picture(1)), "caption": "one"}])
    done = run(build_arguments(source, tmp_path / "out"), tmp_path)
    assert done.returncode == 1
    assert "the process that starts workers has died: ModuleNotFoundError: import of numpy halted" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_tells_how_a_worker_ended_even_if_the_driver_blocks_signals() -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    try:
        with fork_server() as server:
            killed, ended = (server.fork("read", {**os.environ, "": "no name"}) for _ in range(2))
            killed.kill()
            assert killed.wait(30) == -signal.SIGKILL
            killed.close()
            ended.close()
            assert ended.wait(30) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def test_a_server_that_died_before_it_was_needed_is_started_again() -> None:
    with started_ahead(), fork_server() as server:
        for died in servers_of(psutil.Process()):
            died.kill()
            psutil.wait_procs([died], timeout=10)
        worker = server.fork("read", os.environ)
        assert worker.poll() is None
    worker.close()
    assert worker.status == -signal.SIGKILL


def test_an_interrupt_while_a_worker_starts_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with fork_server() as server:
        first = server.fork("read", os.environ)
        receive = server.receive

        def interrupted(timeout_s: float | None) -> bool:
            receive(timeout_s)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(server, "receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                server.fork("read", os.environ)
        assert not servers_of(psutil.Process())
        assert first.wait(5) == -signal.SIGKILL
        first.close()
        _, alive = psutil.wait_procs([psutil.Process(first.pid)] if psutil.pid_exists(first.pid) else [], timeout=5)
        assert not alive


@pytest.mark.skipif(find_spec("wandb") is None, reason="nothing would import it")
@pytest.mark.parametrize("engine", ["aiohttp", "img2dataset"])
def test_a_build_with_a_model_and_any_engine_leaves_no_folders_of_wandb_behind(
    web: PictureWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    source = write_input(tmp_path / "in.parquet", [{"url": web.add("/1.jpg", picture(1)), "caption": "one"}])
    options = ["--model", "tiny", "--set", f"fetch.engine={engine}"]
    done = run(build_arguments(source, tmp_path / "out", *options), tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["rows_in"] == 1, done.stderr
    assert not list((tmp_path / "tmp").glob("*wandb*"))


def test_a_daemon_without_standard_streams_can_build(web: PictureWeb, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.parquet", [{"url": web.add("/1.jpg", picture(1)), "caption": "one"}])
    command = shlex.join([*PAIRMILL, *build_arguments(source, tmp_path / "out")])
    subprocess.run(["sh", "-c", f"exec {command} <&- >&- 2>&-"], cwd=tmp_path, timeout=240, check=False)
    assert pairmill.status(tmp_path / "out").statuses == {"ok": 1}
