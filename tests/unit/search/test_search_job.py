"""Tests the output of the commands `index` and `search`, with embeddings that need no model."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.command_line import parse_command
from pairmill.jobs.cli.main import app
from pairmill.jobs.cluster.job_bundle import bundled
from pairmill.schemas.errors import JobError
from tests.unit.search.vectors import SHARD_ROWS, is_missing, make_dataset


def test_unfinished_shards_are_counted(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "out", 4)
    uid = pq.read_table(folder / "pairs/000000000.parquet", columns=["uid"])["uid"][int(is_missing(0).argmin())].as_py()
    complete = pairmill.search(folder, uid=uid)
    assert complete.unfinished_shards == 0
    assert not any("not finished" in line for line in complete.facts())
    for shard in (1, 2):
        (folder / f"manifests/{shard:09d}.json").unlink()
    done = CliRunner().invoke(app, ["search", str(folder), "--uid", uid, "--json"])
    assert "2 planned shards not finished yet: their rows cannot be found" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["unfinished_shards"] == 2
    done = CliRunner().invoke(app, ["index", str(folder), "--json"])
    assert "2 planned shards not finished yet: run this command again" in done.stdout
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["shards"], report["unfinished_shards"], report["rows"]) == (2, 2, 2 * SHARD_ROWS)


def test_the_number_of_rows_can_be_any_integer(tmp_path: Path) -> None:
    """faiss used to answer NumPy's integers with its C++ signatures."""
    folder = make_dataset(tmp_path / "out", 1)
    uid = pq.read_table(folder / "pairs/000000000.parquet", columns=["uid"])["uid"][int(is_missing(0).argmin())].as_py()
    found = [pairmill.search(folder, uid=uid, top=top).matches for top in (3, np.int64(3), np.uint8(3))]
    assert found[0] == found[1] == found[2] and len(found[0]) == 3
    for top in (3.0, "3", None):
        with pytest.raises(JobError, match="top must be an integer"):
            pairmill.search(folder, uid=uid, top=top)  # type: ignore[arg-type]


def test_pairmill_accepts_the_index_command_that_a_cluster_runs(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "out", 2)
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    command = parse_command(group, ["index", str(folder), "--json", "--set", "s3.endpoint=http://localhost:9"])
    assert (command.uris, command.has_models) == ([str(folder)], False)
    with bundled(command) as bundle:
        done = CliRunner().invoke(app, bundle.command())  # what the job's entrypoint runs
    assert json.loads(done.stdout.splitlines()[-1])["shards"] == 2
    with (
        pytest.raises(JobError, match="is relative to the current folder of this machine"),
        bundled(parse_command(group, ["index", "out"])),
    ):
        pass
