"""Learned mixes are scikit-learn's logistic regression, as a formula that `score` takes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import pairmill
from pairmill.jobs.probe import MixRequest, train_mix
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.labels import LabelSource
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


def test_a_mix_is_scikit_learns_and_score_takes_its_formula(folder: Path) -> None:
    labels = folder.parent / "labels.parquet"
    result = train_mix(Store(str(folder)), MixRequest(("similarity", "dense"), LabelSource([str(labels)])))
    assert result.figures.examples == ROWS - 1
    assert result.figures.notes[0] == "1 labeled row left out: no number in some of the columns"
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
