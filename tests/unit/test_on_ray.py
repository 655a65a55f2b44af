"""Tests the shell script that starts a submitted job: it finds the Python of its ancestor process, the raylet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "jobs" / "cluster" / "on_ray.sh"
RAYLET = "import subprocess, sys; sys.exit(subprocess.run(['sh', '-c', sys.argv[1]]).returncode)"


def fake_python(folder: Path) -> Path:
    """An executable named python that prints its path and its arguments."""
    folder.mkdir()
    path = folder / "python"
    path.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
    path.chmod(0o755)
    return path


def under_a_raylet(*options: str, path: str = os.environ["PATH"]) -> list[str]:
    """The output of the script as the entrypoint of a job, in a child of a process with a raylet's command line."""
    entrypoint = f"sh {SCRIPT} build 'a b' --set c=1"
    command = [sys.executable, "-c", RAYLET, entrypoint, "--session_dir=/tmp/ray", *options, "--labels={}"]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("name", ["venv", "my venv"])
def test_the_job_runs_with_the_python_of_the_ray_workers(tmp_path: Path, name: str) -> None:
    python = fake_python(tmp_path / name)
    worker_command = subprocess.list2cmdline([str(python), "/x/setup_worker.py", "--a=RAY_PLACEHOLDER"])
    got = under_a_raylet(f"--python_worker_command={worker_command}")
    assert got == [str(python), "-m", "pairmill", "build", "a b", "--set", "c=1"]


def test_without_a_raylet_the_job_runs_with_the_python_on_the_path(tmp_path: Path) -> None:
    python = fake_python(tmp_path / "bin")
    got = under_a_raylet(path=f"{python.parent}:{os.environ['PATH']}")
    assert got == [str(python), "-m", "pairmill", "build", "a b", "--set", "c=1"]
