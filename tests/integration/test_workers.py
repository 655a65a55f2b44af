"""Tests that a subset is the same with any number of workers."""

import json
from pathlib import Path

import pytest
import ray

from pairmill.jobs.select import select
from pairmill.schemas.subset import SelectJob
from tests.synthetic_dataset import write_dataset
from tests.unit.select.conftest import row_ids

STEPS = [
    {"where": "similarity >= 0.2"},
    {"top": {"by": "similarity", "fraction": 0.5}},
    {"dedup": {"by": "sha256", "best": "similarity"}},
    {"dedup": {"by": "phash", "distance": 3}},
    {"sample": {"fraction": 0.5}},
]


def test_one_two_and_eight_workers_select_the_same_subset(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairmill.jobs.select.ROWS_FOR_RAY", 0)
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 3_000)
    write_dataset(tmp_path / "dataset", 20_000, shard_rows=500)
    write_dataset(tmp_path / "other", 2_000, shard_rows=300)
    known = {"known": {"path": str(tmp_path / "other"), "by": ["url", "phash"], "distance": 2}}
    cpus = ray.cluster_resources()["CPU"]
    for workers in (1, 2, 8):  # Ray allocates whole CPUs, or fractions of one
        monkeypatch.setattr("pairmill.jobs.cluster.ray_tasks.CALL_CPUS", cpus // workers or cpus / workers)
        select(
            SelectJob.model_validate(
                {"dataset": str(tmp_path / "dataset"), "name": f"on{workers}", "steps": [known, *STEPS]}
            )
        )
    one, two, eight = (row_ids(tmp_path / "dataset", f"on{workers}") for workers in (1, 2, 8))
    assert one == two == eight
    assert len(one) > 1_000
    reports = [
        json.loads((tmp_path / f"dataset/subsets/on{workers}/selection.json").read_text())["reports"]
        for workers in (1, 2, 8)
    ]
    assert reports[0] == reports[1] == reports[2]
