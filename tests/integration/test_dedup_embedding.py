"""Compares dedup by embedding on Ray with dedup by embedding in a plain loop."""

from pathlib import Path

import pytest

from pairmill.pipeline.select.semantic import centers
from pairmill.pipeline.select.steps import dedup_embedding
from tests.embedded_dataset import write_embedded
from tests.unit.select.test_dedup_embedding import goes, photographs, with_copies


def test_dedup_by_embedding_drops_the_same_rows_on_ray_and_in_a_plain_loop(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_embedded(tmp_path, with_copies(photographs(900)[:, :64], 0.9))
    monkeypatch.setattr(centers, "MIN_CLUSTER_ROWS", 300)
    expected, plain = goes(dataset, threshold=0.9)
    monkeypatch.setattr("pairmill.jobs.select.ROWS_FOR_RAY", 0)
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 700)
    monkeypatch.setattr(dedup_embedding, "PARTITION_BYTES", 120_000)
    found, on_ray = goes(dataset, threshold=0.9)
    assert 100 < expected.sum() < 800
    assert (found == expected).all()
    assert on_ray == plain
