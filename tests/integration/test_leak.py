"""Compares the `leak` step on Ray with the same step in a plain loop."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import picture_dataset
from tests.unit.select.conftest import make_subset, row_ids
from tests.unit.select.test_leak import PAIRS, ROWS, write_training


def test_leak_has_the_same_result_on_ray_and_in_a_plain_loop(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = tmp_path / "evaluation"
    picture_dataset.write(evaluation, 24, PAIRS, shard_rows=11)
    training = write_training(tmp_path / "training", evaluation, list(range(ROWS)), shard_rows=100)
    step = {"leak": str(evaluation)}
    plain = make_subset(training, "plain", step)
    monkeypatch.setattr("pairmill.jobs.select.ROWS_FOR_RAY", 0)
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 100)
    on_ray = make_subset(training, "ray", step)
    assert on_ray.reports == plain.reports
    assert row_ids(training, "ray") == row_ids(training, "plain")
    one, other = (pq.ParquetFile(training / each.overlaps[0].path).read() for each in (plain, on_ray))
    assert one.equals(other) and one.num_rows > 10
