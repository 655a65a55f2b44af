"""Tests that a subset is the same on any number of workers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.synthetic_dataset import write_dataset
from tests.unit.select.conftest import row_ids

SELECT = """
import json, os, sys
import pairmill.jobs.select
from pairmill.jobs.cluster import session
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.subset import SelectJob

dataset, cpus = sys.argv[1], int(sys.argv[2])
pairmill.jobs.select.ROWS_FOR_RAY, pairmill.jobs.select.CHUNK_ROWS = 0, 3_000
steps = [
    {"where": "similarity >= 0.2"},
    {"top": {"by": "similarity", "fraction": 0.5}},
    {"dedup": {"by": "sha256", "best": "similarity"}},
    {"dedup": {"by": "phash", "distance": 3}},
    {"sample": {"fraction": 0.5}},
]
with session.ray_session(RunConfig(), spare_cpus=cpus - os.cpu_count()):
    pairmill.jobs.select.select(SelectJob.model_validate({"dataset": dataset, "name": f"on{cpus}", "steps": steps}))
"""


@pytest.mark.timeout(300)
def test_one_two_and_eight_workers_select_the_same_subset(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", 20_000, shard_rows=500)
    for cpus in (1, 2, 8):
        command = [sys.executable, "-c", SELECT, str(tmp_path / "dataset"), str(cpus)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two, eight = (row_ids(tmp_path / "dataset", f"on{cpus}") for cpus in (1, 2, 8))
    assert one == two == eight
    assert len(one) > 1_000
    reports = [
        json.loads((tmp_path / f"dataset/subsets/on{cpus}/selection.json").read_text())["reports"] for cpus in (1, 2, 8)
    ]
    assert reports[0] == reports[1] == reports[2]
