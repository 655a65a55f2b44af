"""Tests what the commands `index` and `search` say about a dataset, with embeddings that need no model."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.main import app
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
