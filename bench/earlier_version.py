"""Runs a benchmark with an earlier version of pairmill, for comparison with the current version."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
EARLIER_COMMIT = "e8ea3ac^"
"""The last commit at which every JPEG was re-encoded (docs/decisions/012). The benchmarks must still run with it."""


@contextmanager
def earlier_version(commit: str = EARLIER_COMMIT) -> Iterator[dict[str, str]]:
    """Environment variables with which Python imports pairmill as it was at `commit`. Needs git and a full clone."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder, "--exclude=bench"], input=archive, check=True)
        yield {**os.environ, "PYTHONPATH": f"{folder}/.editable:{ROOT}"}


def start(
    module: str, arguments: list[str], environment: dict[str, str] | None = None, stderr: int | None = None
) -> subprocess.Popen[str]:
    """Start a module, with pipes to its stdin and stdout."""
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    environment = environment or {**os.environ, "PYTHONPATH": str(ROOT)}
    elsewhere = tempfile.gettempdir()  # in ROOT, the folder pairmill/ would come before PYTHONPATH
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=elsewhere, text=True, stdin=pipe, stdout=pipe, stderr=stderr)


def run(module: str, arguments: list[str], environment: dict[str, str] | None = None) -> str:
    """The last line that a module prints on stdout."""
    process = start(module, arguments, environment, subprocess.PIPE)
    printed, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)}: {errors[-2000:]}")
    return printed.splitlines()[-1]
