"""Keeps workers, threads and waiting for the disk out of the unit tests."""

import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from typer.main import get_command

if TYPE_CHECKING:
    import pyarrow as pa

    from pairmill.pipeline.stages.pipelines import Pipeline

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""The tables and matrices of these tests are so small that more threads only cost CPU time. Must be set before pyarrow,
numpy and torch are loaded."""


def _is_roomy(folder: Path) -> bool:
    """Whether a folder in memory has room for all temporary files, some of which are executed."""
    found = os.statvfs(folder) if folder.is_dir() else None
    return found is not None and found.f_bavail * found.f_frsize > 4 << 30 and not found.f_flag & os.ST_NOEXEC


if _is_roomy(MEMORY := Path("/dev/shm")):
    os.environ.setdefault("TMPDIR", str(MEMORY))  # on a disk, creating and deleting files takes ten times as much CPU
    tempfile.tempdir = None


@pytest.fixture(scope="session", autouse=True)
def _workers_do_not_start() -> Iterator[None]:
    """Make tests that start Ray or worker processes fail: that takes seconds, and Ray leaves a token that other tests
    would see."""

    def start(*_: object) -> NoReturn:
        raise AssertionError("a unit test starts workers: use the fixture no_workers, or make it an integration test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairmill.jobs.cluster.session._init", start)
        patch.setattr("pairmill.jobs.cluster.fork_server.ForkServer.fork", start)
        patch.setattr("pairmill.jobs.cluster.fork_server.ForkServer.start", lambda _: None)  # ahead of a job's checks
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Skip fsync, which takes half of the time of a purge here. Crashes of the machine are not tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _commands_are_built_once() -> Iterator[None]:
    """Typer would build all commands again for each command line that a test tries."""
    cached = cache(get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", cached)
        patch.setattr("typer.testing._get_command", cached)
        yield


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the shards of score jobs in this process."""
    from pairmill.pipeline.stages.pipelines import open_stages, process_batch
    from pairmill.schemas.batch import planned_batches

    def run_shards_of(pipeline: "Pipeline", shards: "pa.Table", *_: object) -> None:
        stages = open_stages(pipeline)
        for batch in planned_batches(shards):
            process_batch(batch, stages)
        for _spec, stage in stages:
            stage.close()

    monkeypatch.setattr("pairmill.jobs.score.run_shards_of", run_shards_of)
