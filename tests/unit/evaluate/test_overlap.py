"""Tests accuracy with and without an overlap against NumPy, and the statistics against SciPy."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

import pairmill
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.intervals import binomial_tail, clopper_pearson
from pairmill.pipeline.evaluate.labeled_rows import RowFilter
from pairmill.pipeline.evaluate.labels import LabelSource
from pairmill.pipeline.evaluate.measure import measure_zero_shot
from pairmill.pipeline.evaluate.overlap import Overlap, compare
from pairmill.pipeline.reader.embeddings import Embeddings
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.schemas.errors import JobError
from tests.unit.evaluate.test_thresholds_and_classes import ALIAS, real, unit, write_embedded


def test_the_published_example_is_reproduced() -> None:
    assert round(binomial_tail(60, 100, 0.5), 4) == 0.0284
    found, notes = compare(50 + 60, 200, 60, 100)
    assert found is not None and not notes
    assert (found.accuracy_clean, found.accuracy_overlap, found.difference) == (0.5, 0.6, 0.55 - 0.5)
    assert round(found.p_value, 4) == 0.0284


def test_the_statistics_equal_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for total in (1, 2, 7, 100, 20_000):
        for hits in {0, total, *rng.integers(0, total + 1, 3).tolist()}:
            for share in (0.0, 1e-6, 0.3, 0.97, 1.0):
                expected = binomtest(hits, total, share, alternative="greater").pvalue
                assert binomial_tail(hits, total, share) == pytest.approx(expected, rel=1e-8, abs=1e-300)
            exact = binomtest(hits, total).proportion_ci(0.995, "exact")
            assert clopper_pearson(hits, total, 0.995) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_there_is_nothing_to_compare_if_all_or_no_rows_are_in_the_overlap() -> None:
    assert compare(5, 10, 0, 0) == (None, ["no labeled picture is in the overlap, so there is nothing to compare"])
    assert compare(5, 10, 5, 10)[0] is None


def test_accuracy_without_the_overlap_is_the_accuracy_on_the_other_rows(tmp_path: Path) -> None:
    images, texts, sha256 = real()
    classes, numbers = texts[::5].astype(np.float32), np.repeat(np.arange(100), 5)
    columns = {"number": numbers.tolist(), "sha256": sha256}
    store = write_embedded(tmp_path / "out", images, texts, 90, columns, pa.schema([("number", pa.int16())]))
    snapshot = Snapshot.of(Store(store.root))
    uids = [uid for shard in snapshot.chunk.shards for uid in snapshot.read(shard, ["uid"])["uid"].to_pylist()]
    known = np.random.default_rng(1).random(len(uids)) < 0.3
    listed = [uid for uid, each in zip(uids, known, strict=True) if each]
    pq.write_table(pa.table({"item_uid": [*listed, *listed[:5], "f" * 32]}), tmp_path / "overlap.parquet")
    overlap = Overlap.read(Store(store.root), str(tmp_path / "overlap.parquet"))
    result, section = measure_zero_shot(
        RowFilter(snapshot), Embeddings.of(snapshot, ALIAS), LabelSource(column="number"),
        [f"class {number}" for number in range(100)], lambda: classes, overlap=overlap,
    )  # fmt: skip
    nearest = np.argmax(unit(images.astype(np.float16).astype(np.float32)) @ classes.T, axis=1)
    hits, found = nearest == numbers, result.overlap
    assert found is not None and (found.rows, found.clean_rows) == (known.sum(), (~known).sum())
    assert found.accuracy_all == pytest.approx(hits.mean()) and found.accuracy_clean == pytest.approx(
        hits[~known].mean()
    )
    assert found.accuracy_overlap == pytest.approx(hits[known].mean())
    assert found.p_value == pytest.approx(
        binomtest(int(hits[known].sum()), int(known.sum()), hits[~known].mean(), alternative="greater").pvalue
    )
    assert any("of the overlap" in line for line in section.results)


def test_files_that_are_not_overlaps_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uid": ["0" * 32]}), tmp_path / "uids.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    pq.write_table(pa.table({"item_uid": ["x"]}), tmp_path / "names.parquet")
    store = Store(str(tmp_path / "out"))
    with pytest.raises(EvaluateError, match="no column 'item_uid'"):
        Overlap.read(store, str(tmp_path / "uids.parquet"))
    with pytest.raises(EvaluateError, match="not a readable Parquet file"):
        Overlap.read(store, str(tmp_path / "text.parquet"))
    with pytest.raises(ValueError, match="cannot be read as a uid"):
        Overlap.read(store, str(tmp_path / "names.parquet"))
    with pytest.raises(JobError, match="with --classes"):
        pairmill.evaluate(store.root, overlap="x.parquet")
