"""A job watched from elsewhere: every new shard is told of once, and the end is seen."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pairmill.jobs.cli.main import app
from pairmill.jobs.cli.watch import watch
from pairmill.jobs.progress import ConsoleProgress
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.planned import PlanError
from pairmill.schemas.manifest import ShardManifest
from tests.synthetic_dataset import write_dataset


class Told(ConsoleProgress):
    def __init__(self) -> None:
        super().__init__()
        self.shards_told: list[int] = []

    def committed(self, manifest: ShardManifest) -> None:
        super().committed(manifest)
        self.shards_told.append(manifest.shard)


def test_shards_are_told_of_once_as_they_come_and_the_end_is_seen(tmp_path: Path) -> None:
    whole, growing = tmp_path / "whole", tmp_path / "growing"
    write_dataset(whole, 1_000, shard_rows=100)
    shutil.copytree(whole, growing)
    manifests = sorted((growing / "manifests").iterdir())
    for path in manifests[3:]:
        path.unlink()

    def work() -> None:
        for path in manifests[3:]:
            time.sleep(0.05)
            shutil.copy(whole / "manifests" / path.name, path)

    told, said = Told(), list[str]()
    thread = threading.Thread(target=work)
    thread.start()
    result = watch(Store(str(growing)), told, 0.02, said.append, quiet_s=0.01)
    thread.join()
    assert told.shards_told == list(range(3, 10))
    assert (result.shards, result.shards_missing, result.input_rows) == (10, [], 1_000)
    assert said  # a while without a commit was remarked upon
    assert "is the job still running?" in said[0]


def test_the_command_ends_at_once_where_all_is_done(tmp_path: Path) -> None:
    write_dataset(tmp_path / "out", 200, shard_rows=100)
    done = CliRunner().invoke(app, ["status", str(tmp_path / "out"), "--watch", "--json"])
    assert done.exit_code == 0
    assert "2 of 2 shards, 200 rows done" in done.output


def test_what_is_no_output_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="has no plan"):
        watch(Store(str(tmp_path)), Told(), 0.1, print)
