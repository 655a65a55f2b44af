"""Tests what a local Ray instance starts and what it leaves alone, and what happens if it does not start."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pairmill.jobs.cluster import session
from pairmill.jobs.cluster.ray_token import SessionError

REPOSITORY = Path(__file__).parents[2]

Told = tuple[dict[str, Any], str]
"""What SCRIPT tells as JSON, and its stderr."""


SCRIPT = """
import json, os, signal, sys, threading, time
import psutil, ray
from pairmill.jobs.cluster.session import ray_session
from pairmill.schemas.job.run import RunConfig

def state():
    files = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
    return [os.getcwd(), *files, id(sys.stdout), id(sys.stderr)]

def watch():
    while not ended.is_set():
        states.append(state())
        time.sleep(0.005)

before, handler, states, ended = state(), signal.getsignal(signal.SIGTERM), [], threading.Event()
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
with ray_session(RunConfig()):
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    path = ray.get(ray.remote(lambda: sys.path).remote())
    try:
        ray.get(ray.remote(max_retries=0)(lambda: os._exit(1)).remote())
    except ray.exceptions.RayError:
        time.sleep(0.5)  # Ray reports the lost task in another thread
ended.set()
watcher.join()
reader, writer = os.pipe()
if os.fork() == 0:
    try:
        with ray_session(RunConfig()):
            os.write(writer, b"Ray started")
    except Exception as error:
        os.write(writer, f"{type(error).__name__}: {error}".encode())
    os._exit(0)
os.close(writer)
fork = os.fdopen(reader).read()
changes = [each for each in [*states, state()] if each != before]
print(json.dumps({
    "commands": commands, "path": path, "changes": changes, "states": len(states),
    "fork": fork, "handler": signal.getsignal(signal.SIGTERM) == handler,
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current directory of `told`."""
    return tmp_path_factory.mktemp("folder")


@pytest.fixture(scope="module")
def told(folder: Path) -> Told:
    """What a process observes while a session runs in one of its threads, and what it prints on stderr."""
    (folder / "secrets.py").write_text("raise SystemExit('the wrong file was imported')")
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", SCRIPT],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr  # fails if anything else was printed on stdout


def test_a_local_instance_runs_no_process_that_only_clusters_use(told: Told) -> None:
    commands = "\n".join(told[0]["commands"])
    assert "raylet" in commands
    assert not re.search(r"dashboard\.py|monitor\.py", commands)


def test_a_session_changes_neither_the_folder_nor_the_files_nor_the_signals_of_its_process(
    told: Told,
) -> None:
    assert told[0]["states"] > 100
    assert (told[0]["changes"], told[0]["handler"]) == ([], True)


def test_workers_do_not_import_from_the_current_directory(folder: Path, told: Told) -> None:
    assert not {"", str(folder)} & set(told[0]["path"])


def test_a_fork_of_a_process_that_used_ray_is_refused(told: Told) -> None:
    assert re.fullmatch(r"JobError: this process was forked from [^\n]+ 'forkserver' instead", told[0]["fork"])


def test_only_lost_tasks_are_reported_and_on_stderr(told: Told) -> None:
    (line,) = told[1].splitlines()
    assert "A worker died or was killed" in line


def test_ray_is_started_again_if_it_fails_to_start_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    failures = [Exception("The current node timed out during startup.")]

    def start() -> None:
        if failures:
            raise failures.pop()

    session._twice(start)
    assert not failures


def test_ray_failing_to_start_twice_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)

    def start() -> None:
        raise Exception("The current node timed out during startup.")

    with pytest.raises(SessionError, match=r"Ray failed to start twice: .*timed out.*overloaded"):
        session._twice(start)


def test_ray_is_not_started_again_if_a_file_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    starts = []

    def start() -> None:
        starts.append(1)
        Path("/sys/ray").mkdir()

    with pytest.raises(SessionError, match=r"^Ray did not start: /sys/ray: .+; set RAY_TMPDIR to a folder that"):
        session._twice(start)
    assert len(starts) == 1
