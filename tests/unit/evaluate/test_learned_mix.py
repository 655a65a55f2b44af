"""Tests that learned mixes equal scikit-learn's logistic regression and are formulas that `score` accepts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pairmill
from pairmill.jobs.probe import MixRequest, train_mix
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.evaluate import learned_mix, lowest_hashes
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.labeled_rows import RowFilter
from pairmill.pipeline.evaluate.labels import LabelSource
from pairmill.pipeline.evaluate.learned_mix import LabeledColumns, gather_columns, learn_mix
from pairmill.pipeline.evaluate.lowest_hashes import LowestHashes
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.mix import parse
from tests.committed_shards import uid_of
from tests.unit.scores.embedded import add, column, unit_vectors, write_embedded

ROWS = 200


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images, texts = unit_vectors(1, ROWS), unit_vectors(2, ROWS)
    write_embedded(tmp_path / "out", images, texts, missing=(4,))
    add(tmp_path / "out", "dense", density={"sample": 100, "neighbors": 3, "clusters": 2})
    noise = np.random.default_rng(3).normal(0, 0.1, ROWS)
    is_good = (images * texts).sum(axis=1) + noise > 0
    uids = [uid_of(0, row) for row in range(ROWS)]
    pq.write_table(pa.table({"uid": uids, "label": is_good}), tmp_path / "labels.parquet")
    return tmp_path / "out"


def test_a_mix_equals_scikit_learns_and_score_accepts_its_formula(folder: Path) -> None:
    labels = folder.parent / "labels.parquet"
    result = train_mix(Store(str(folder)), MixRequest(("similarity", "dense"), LabelSource([str(labels)])))
    assert result.figures.examples == ROWS - 1
    assert result.figures.notes[0] == "1 labeled row left out: a column has no number"
    assert 0.7 < result.figures.accuracy < 1 and result.figures.auc > 0.8
    pairmill.score(folder, "good", f"mix: {result.formula}")
    values = np.stack([column(folder, "similarity"), column(folder, "dense")], axis=1)
    usable = np.isfinite(values).all(axis=1)
    is_good = pq.read_table(labels)["label"].to_numpy()[usable]
    scaler = StandardScaler().fit(values[usable])
    model = LogisticRegression(C=result.figures.c, tol=1e-8, max_iter=1_000)
    logits = model.fit(scaler.transform(values[usable]), is_good).decision_function(scaler.transform(values[usable]))
    found = column(folder, "good")
    assert np.allclose(found[usable], logits, atol=1e-3) and np.isnan(found[~usable]).all()


def test_the_formula_equals_the_fitted_model_whatever_the_range_of_the_columns() -> None:
    rng = np.random.default_rng(4)
    values = np.stack([1.7e9 + 20 * rng.standard_normal(150), rng.standard_normal(150)], axis=1)
    is_good = (values - [1.7e9, 0]) @ [0.05, 1] + 0.3 * rng.standard_normal(150) > 0
    rows = LabeledColumns(np.arange(150, dtype=np.uint64), values, pa.array(is_good), ())
    mix = learn_mix(rows, ["seconds", "class"])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=mix.probe.c, tol=1e-8, max_iter=1_000))
    logits = model.fit(values, is_good).decision_function(values)
    outer = parse(mix.formula).outer
    found = outer.evaluate(pa.table({"seconds": values[:, 0], "class": values[:, 1]})).to_numpy()
    assert np.allclose(found, logits, atol=1e-3)


@pytest.mark.parametrize("power", [-1_000, -600, 0, 600, 1_000])
def test_a_formula_does_not_depend_on_the_unit_of_a_column(power: int) -> None:
    rng = np.random.default_rng(4)
    values = rng.standard_normal((150, 2))
    is_good = pa.array(values[:, 0] + 0.3 * rng.standard_normal(150) > 0)
    other = np.ldexp(values, [power, 0])
    mixes = [
        learn_mix(LabeledColumns(np.arange(150, dtype=np.uint64), each, is_good, ()), ["a", "b"])
        for each in (values, other)
    ]
    found = [
        parse(mix.formula).outer.evaluate(pa.table({"a": each[:, 0], "b": each[:, 1]})).to_numpy()
        for mix, each in zip(mixes, (values, other), strict=True)
    ]
    assert np.allclose(*found) and mixes[0].probe.losses == mixes[1].probe.losses


def test_a_column_whose_weight_would_be_infinite_is_named() -> None:
    values = np.stack([np.arange(30) * 5e-324, np.arange(30.0)], axis=1)
    rows = LabeledColumns(np.arange(30, dtype=np.uint64), values, pa.array(np.arange(30) > 12), ())
    with pytest.raises(EvaluateError, match="column 'a' is so close to 0"):
        learn_mix(rows, ["a", "b"])


@pytest.mark.parametrize("name", ["class", "None", "True", "lambda", "a'b", 'x"y', "is", "\u00b5m", "plain", "rank"])
def test_a_formula_can_be_parsed_whatever_the_names_of_its_columns(name: str) -> None:
    rows = pa.table({name: [0.5, 2.0]})
    outer = parse(learned_mix._term(0.1, name)).outer
    assert np.allclose(outer.evaluate(rows).to_numpy(), [0.05, 0.2])


def test_a_sample_has_the_rows_with_the_lowest_hashes_and_few_others_stay_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowest_hashes, "_SPARE_ROWS", 10)
    request = LabelSource([str(folder.parent / "labels.parquet")])
    rows = RowFilter(Snapshot.of(Store(str(folder))))
    whole = gather_columns(rows, request.open(rows.snapshot), ["similarity"], 1_000)
    part = gather_columns(rows, request.open(rows.snapshot), ["similarity"], 20)
    assert np.array_equal(part.values, whole.values[:20]) and np.array_equal(part.hashes, np.sort(whole.hashes)[:20])
    assert part.facts[-1] == f"sampled 20 of {ROWS - 1} labeled rows, by a hash of the uid"
    kept = LowestHashes(5)
    for start in range(0, 10_000, 10):
        kept.add(np.arange(start, start + 10, dtype=np.uint64), pa.array([True] * 10), np.zeros(10))
        assert sum(len(hashes) for hashes, *_ in kept._parts) <= 30
    assert kept.rows()[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("similarity", "nothing"), "has no column 'nothing'"),
        (("similarity", "caption"), "column 'caption' is string; a mix needs numbers"),
        (("similarity",), "name two or more different columns"),
        (("similarity", "similarity"), "name two or more different columns"),
    ],
)
def test_columns_that_cannot_be_mixed_are_named(folder: Path, columns: tuple[str, ...], message: str) -> None:
    source = LabelSource([str(folder.parent / "labels.parquet")])
    with pytest.raises((EvaluateError, pairmill.JobError), match=message):
        train_mix(Store(str(folder)), MixRequest(columns, source))
