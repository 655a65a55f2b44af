"""Tests which processes a local Ray instance starts, and what happens if it does not start."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pairmill.jobs.cluster import session
from pairmill.jobs.cluster.ray_token import SessionError


def test_a_local_instance_runs_no_process_that_only_clusters_use() -> None:
    code = """
import psutil
from pairmill.jobs.cluster.session import ray_session
from pairmill.schemas.job.run import RunConfig

with ray_session(RunConfig()):
    for child in psutil.Process().children():
        print(*child.cmdline())
"""
    command_lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert "raylet" in command_lines
    assert not re.search(r"dashboard\.py|monitor\.py", command_lines)


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
