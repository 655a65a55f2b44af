"""Tests probes against scikit-learn: their weights, their cross-validation, and the scores of their heads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from threadpoolctl import threadpool_limits

import pairmill
from pairmill.jobs import probe
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.examples import Examples, distinct
from pairmill.pipeline.evaluate.intervals import wilson
from pairmill.pipeline.evaluate.labeled_rows import Target
from pairmill.pipeline.evaluate.labels import FileLabels
from pairmill.pipeline.evaluate.probe import COARSE, FOLDS, Probe, Weights, folds_of, search, train
from pairmill.pipeline.evaluate.reliability import calibration_error, reliability, reliability_lines
from pairmill.pipeline.score.kind import ScoreError
from pairmill.schemas.errors import JobError
from pairmill.schemas.s3 import S3Config
from tests.unit.evaluate.embedded import uid_of, unit, write_embedded, write_labels

ROWS, DIM = 150, 12
OPTIONS = {"solver": "lbfgs", "max_iter": 1_000, "tol": 1e-6}

Doubles = npt.NDArray[np.float64]


def noisy(seed: int = 3) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """(unit vectors, labels that no plane can separate)."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(ROWS, DIM)))
    return vectors, vectors[:, 0] + 0.5 * vectors[:, 1] + rng.normal(0, 0.2, ROWS) > 0


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, which makes scikit-learn faster here."""
    with threadpool_limits(1):
        yield


@contextmanager
def trying_four_penalties() -> Iterator[None]:
    """Make training four times as fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairmill.pipeline.evaluate.probe.COARSE", (-6.0, -2.0, 0.0, 6.0))
        patch.setattr("pairmill.pipeline.evaluate.probe.FIRST_STEP", 0.0)
        yield


@pytest.fixture
def four_penalties() -> Iterator[None]:
    with trying_four_penalties():
        yield


def hashes(rows: int = ROWS) -> npt.NDArray[np.uint64]:
    return np.random.default_rng(1).permutation(rows).astype(np.uint64)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of unit vectors. Rows 5 and 6 have no embedding, and row 8 has the same embedding as row 7."""
    folder = tmp_path_factory.mktemp("probe") / "out"
    vectors, is_good = noisy()
    vectors[5:7], vectors[8] = np.nan, vectors[7]
    extra = pa.schema([("label", pa.bool_()), ("grade", pa.int32()), ("animal", pa.string()), ("price", pa.float32())])
    animals = np.where(is_good, "cat", np.where(vectors[:, 2] > 0, "dog", "owl")).tolist()
    columns = {
        "label": is_good.tolist(),
        "grade": is_good.astype(int).tolist(),
        "animal": animals,
        "price": [1.0] * ROWS,
    }
    write_embedded(folder, vectors, shard_rows=70, columns=columns, extra=extra)
    write_labels(folder / "labels/good.parquet", {row: bool(is_good[row]) for row in range(ROWS)})
    return folder


@pytest.fixture(scope="module")
def trained(dataset: Path) -> pairmill.ProbeResult:
    """A probe trained on all labels, with its page beside the head."""
    head = dataset.parent / "good.safetensors"
    with trying_four_penalties():
        return pairmill.probe(dataset, head, labels="labels/good.parquet", page=head.with_suffix(".html"))


def test_weights_and_out_of_fold_losses_equal_those_of_scikit_learn() -> None:
    vectors, is_good = noisy()
    folds = folds_of(hashes(), is_good)
    assert {(folds[is_good] == fold).sum() for fold in range(FOLDS)} <= {
        is_good.sum() // FOLDS,
        -(-is_good.sum() // FOLDS),
    }
    probe = train(vectors, is_good, folds)
    own = LogisticRegression(C=probe.c, **OPTIONS).fit(vectors, is_good)
    assert np.allclose(probe.weights.weight, own.coef_[0], atol=1e-4)
    assert abs(probe.weights.bias - own.intercept_[0]) < 1e-4

    def predicted(used: npt.NDArray[np.bool_], exponent: float) -> Doubles:
        split = PredefinedSplit(folds[used])
        model = LogisticRegression(C=10.0**-exponent, **OPTIONS)
        found: Doubles = cross_val_predict(model, vectors[used], is_good[used], cv=split, method="predict_proba")[:, 1]
        return found

    everything = np.ones(ROWS, np.bool_)
    for exponent, loss in sorted(probe.losses.items())[::4]:
        assert loss == pytest.approx(log_loss(is_good, predicted(everything, exponent)), abs=1e-6)
    used = folds != 2
    exponent, _ = search(lambda each: float(log_loss(is_good[used], predicted(used, each))))
    model = LogisticRegression(C=10.0**-exponent, **OPTIONS).fit(vectors[used], is_good[used])
    assert np.allclose(probe.probabilities[~used], model.predict_proba(vectors[~used])[:, 1], atol=1e-5)


@pytest.mark.parametrize("best", [-6.0, -5.875, -1.3, 0.0, 2.5, 6.0])
def test_the_search_finds_the_best_penalty_in_eight_steps_per_decade(best: float) -> None:
    grid = np.arange(-48, 49) / 8
    found, tried = search(lambda exponent: (exponent - best) ** 2)
    assert found == min(grid, key=lambda exponent: (exponent - best) ** 2)
    assert set(COARSE) <= tried.keys() <= set(grid.tolist()) and len(tried) <= 15
    assert search(lambda exponent: 1.0)[0] == 6.0  # among equal losses, the strongest penalty wins


@pytest.mark.usefixtures("four_penalties")
def test_two_separate_gaussians_are_always_distinguished(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    center = np.where(np.arange(60)[:, None] % 2, 1.0, -1.0) * np.eye(8)[0]
    write_embedded(tmp_path / "out", unit(center + rng.normal(0, 0.05, (60, 8))))
    write_labels(tmp_path / "out/labels/l.parquet", {row: bool(row % 2) for row in range(60)})
    result = pairmill.probe(tmp_path / "out", tmp_path / "p.safetensors", labels="labels/l.parquet")
    assert (result.figures.accuracy, result.figures.auc, result.figures.examples) == (1.0, 1.0, 60)
    assert result.figures.accuracy_interval[1] == 1.0
    assert result.figures.accuracy_interval[0] == pytest.approx(60 / (60 + 1.959964**2))


def test_a_head_scores_as_scikit_learn_predicts_and_refuses_other_embeddings(
    dataset: Path, trained: pairmill.ProbeResult, tmp_path: Path
) -> None:
    head, result = Path(trained.head), trained
    vectors, is_good = noisy()
    stored = vectors.astype(np.float16).astype(np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    used = np.setdiff1d(np.arange(ROWS), [5, 6, 8, 7] if is_good[7] != is_good[8] else [5, 6, 8])
    own = LogisticRegression(C=result.figures.c, **OPTIONS).fit(stored[used].astype(np.float64), is_good[used])
    pairmill.score(dataset, "good", {"head": {"weights": head}})
    scores = pairmill.open(dataset).table(["uid", "good"])
    assert scores["good"].null_count == 2
    stored[8] = stored[7]
    expected = own.predict_proba(stored.astype(np.float64))[:, 1]
    for uid, score in zip(scores["uid"].to_pylist(), scores["good"].to_pylist(), strict=True):
        row = ROW_OF[uid]
        assert score is None if row in (5, 6) else abs(score - expected[row]) < 1e-5
    text = head.with_suffix(".html").read_text()
    assert "<script" not in text and "accuracy" in text and 'class="diagonal"' in text
    with safe_open(head, "numpy") as file:  # type: ignore[no-untyped-call]
        assert file.get_slice("layers.0.weight").get_shape() == [1, DIM]
    with pytest.raises(ScoreError, match="trained on embeddings of kind 'image'; set `of` to image"):
        pairmill.score(dataset, "other", {"head": {"weights": head, "of": "text"}})
    other = write_embedded(tmp_path / "other", vectors)
    files = sorted(Path(other.root, "pairs").glob("*.parquet"))
    for file in files:
        table = pq.read_table(file)
        metadata = {key: value.replace(b"0" * 64, b"1" * 64) for key, value in table.schema.metadata.items()}
        pq.write_table(table.replace_schema_metadata(metadata), file)
    with pytest.raises(ScoreError, match="was trained on embeddings of ViT-B-32:openai"):
        pairmill.score(other.root, "good", {"head": {"weights": head}})


ROW_OF = {uid_of(row): row for row in range(ROWS)}


@pytest.mark.usefixtures("four_penalties")
def test_a_probe_depends_neither_on_shards_nor_on_the_order_of_labels(
    trained: pairmill.ProbeResult, tmp_path: Path
) -> None:
    vectors, is_good = noisy()
    vectors[5:7], vectors[8] = np.nan, vectors[7]
    whole = tmp_path / "whole"
    write_embedded(whole, vectors, shard_rows=ROWS)
    labels = write_labels(tmp_path / "l/l.parquet", {row: bool(is_good[row]) for row in reversed(range(ROWS))})
    other = pairmill.probe(whole, tmp_path / "b.safetensors", labels=[labels])
    assert Path(other.head).read_bytes() == Path(trained.head).read_bytes()
    assert other.figures == trained.figures
    assert other.figures.notes[0] == "2 labeled rows left out: no embedding of the picture"


def test_equal_embeddings_count_as_one_example_or_none_if_their_labels_differ() -> None:
    vectors = np.eye(4, dtype=np.float16)[[0, 1, 0, 2, 1, 3]]
    labels = np.array([True, True, True, False, False, False])
    examples, kept = distinct(Examples(hashes(6), pa.array(labels), vectors, ["before"]), labels)
    assert examples.vectors.argmax(axis=1).tolist() == [0, 2, 3]
    assert kept.tolist() == examples.labels.to_pylist() == [True, False, False]
    assert examples.facts == [
        "before",
        "2 labeled rows left out: another row has the same embedding",
        "1 embedding left out: rows with different labels",
    ]


@pytest.mark.usefixtures("four_penalties")
def test_labels_can_come_from_columns_of_any_kind_and_one_value_can_be_the_positive_label(
    dataset: Path, trained: pairmill.ProbeResult, tmp_path: Path
) -> None:
    out = tmp_path / "p.safetensors"
    plain = trained
    assert plain.figures.positive == "good"
    figures = pairmill.probe(dataset, out, label_column="animal", positive="cat").figures
    assert (figures.accuracy, figures.c) == (plain.figures.accuracy, plain.figures.c)
    few = pairmill.probe(dataset, out, label_column="grade", limit=100).figures
    assert few.notes[:2] == [
        "2 labeled rows left out: no embedding of the picture",
        "sampled 100 of 148 labeled rows, by a hash of the uid",
    ]
    assert few.examples <= 100


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "--labels FILE"),
        (
            {"label_column": "animal"},
            r"3 distinct values \('cat', 'dog', 'owl'\): name the positive one with --positive",
        ),
        ({"label_column": "animal", "positive": ""}, "no label is ''; the labels are: 'cat', 'dog', 'owl'"),
        ({"label_column": "animal", "positive": "cow"}, "no label is 'cow'; the labels are: 'cat', 'dog', 'owl'"),
        (
            {"label_column": "price"},
            "the column 'price' is float; labels must be true or false, whole numbers, or text",
        ),
        ({"label_column": "nothing"}, "no column 'nothing'"),
        ({"labels": "labels/none.parquet"}, "no such file, neither here nor in"),
        ({"labels": "https://host/labels.parquet"}, "specify a local file or s3://"),
        (
            {"labels": "LABELS", "given": {0: True, 1: True, 2: True}},
            "3 labels, all 'true'; label some rows differently",
        ),
        ({"labels": "LABELS", "given": {row: row < 4 for row in range(5, 30)} | {0: True}}, "only 1 example of good"),
        (
            {"labels": "LABELS", "given": {1_000: True, 1_001: False}},
            "no labeled row .* has an embedding\n2 labeled uids",
        ),
        ({"labels": "LABELS", "given": [("xyz", True)]}, "cannot be read as a uid, such as 'xyz'"),
        ({"labels": "LABELS", "label_column": "grade", "given": {0: True}}, "needs the columns uid and grade; it has"),
        ({"labels": "LABELS", "given": {0: 0.5}}, "the column 'label' is double; labels must be"),
        ({"label_column": "label", "model": "other"}, "no model 'other'"),
        ({"label_column": "label", "limit": 0}, "give a positive number"),
    ],
)
def test_unusable_labels_are_refused_in_one_line(
    dataset: Path, tmp_path: Path, keywords: dict[str, object], message: str
) -> None:
    given = keywords.get("given")
    if given is not None:
        path = write_labels(tmp_path / "l/labels.parquet", given)  # type: ignore[arg-type]
        keywords = {**{name: value for name, value in keywords.items() if name != "given"}, "labels": path}
    with pytest.raises(ValueError, match=message):
        pairmill.probe(dataset, tmp_path / "p.safetensors", **keywords)  # type: ignore[arg-type]
    assert not (tmp_path / "p.safetensors").exists()


def test_a_head_is_a_safetensors_file_and_damaged_labels_are_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"must end in \.safetensors"):
        pairmill.probe(dataset, tmp_path / "p.pth", label_column="label")
    with pytest.raises(JobError, match="choose a file in an existing folder"):  # before the labels are read
        pairmill.probe(dataset, tmp_path / "nowhere/p.safetensors", labels="nothing.parquet")
    bad = tmp_path / "labels.parquet"
    bad.write_bytes(b"PAR1 and nothing")
    with pytest.raises(EvaluateError, match="not a readable Parquet file"):
        pairmill.probe(dataset, tmp_path / "p.safetensors", labels=bad)


def test_a_small_file_that_expands_to_long_labels_is_refused(tmp_path: Path) -> None:
    """Parquet stores a repeated string only once. Here, the strings take 2 GB once they are expanded."""
    text, rows = "x" * 100_000, 20_000
    label = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))
    table = pa.table({"uid": [f"{row:032x}" for row in range(rows)], "label": label})
    pq.write_table(table, tmp_path / "labels.parquet")
    pool = pa.default_memory_pool()
    before = max(pool.max_memory(), pool.bytes_allocated() + (64 << 20))
    with pytest.raises(EvaluateError, match=r"its labels take more than 268,435,456 bytes as plain text"):
        FileLabels.read(Files(S3Config()), [str(tmp_path / "labels.parquet")])
    assert pool.max_memory() <= before


@pytest.mark.usefixtures("four_penalties")
def test_unused_labels_are_counted(dataset: Path, tmp_path: Path) -> None:
    _, is_good = noisy()
    pairs = [(uid_of(row).upper(), bool(is_good[row])) for row in range(20, 120)]
    pairs += [pairs[0], pairs[1], (uid_of(20), not is_good[20]), (uid_of(9_999), True), (uid_of(5), True)]
    first = write_labels(tmp_path / "l/first.parquet", pairs)
    second = tmp_path / "l/second.parquet"
    pq.write_table(pa.table({"uid": [uid_of(140), uid_of(141)], "label": pa.array([None, True])}), second)
    figures = pairmill.probe(dataset, tmp_path / "p.safetensors", labels=[first, second]).figures
    assert figures.examples == 100  # 99 of the 100 rows from 20 to 119, and row 141
    assert figures.notes[:5] == [
        "1 label empty",
        "3 labels for an already labeled uid",
        "1 uid left out: different labels",
        "1 labeled uid not found among the rows",
        "1 labeled row left out: no embedding of the picture",
    ]


def test_the_interval_is_the_wilson_interval() -> None:
    for hits, total in ((0, 1), (0, 30), (1, 30), (15, 30), (30, 30), (832, 1_000)):
        expected = binomtest(hits, total).proportion_ci(method="wilson")
        assert wilson(hits, total) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert wilson(0, 0) == (0, 1)


def test_reliability_counts_and_draws_every_example_once() -> None:
    rng = np.random.default_rng(2)
    probabilities = np.append(rng.random(500), [0.0, 1.0])
    is_good = rng.random(502) < probabilities
    bins = reliability(probabilities, is_good)
    assert (sum(each.count for each in bins), sum(each.hits for each in bins)) == (502, is_good.sum())
    edges = np.digitize(probabilities, np.linspace(0, 1, 11)[1:-1])
    expected = [
        abs(probabilities[edges == n].mean() - is_good[edges == n].mean()) * (edges == n).mean() for n in range(10)
    ]
    assert calibration_error(bins) == pytest.approx(sum(expected))
    for columns, widest in ((1, 34), (60, 60), (200, 73)):
        lines = reliability_lines(bins, "good", columns)
        assert len(lines) == 11 and all(line.count("o") >= 1 for line in lines[1:])
        assert max(map(len, lines[1:])) == widest


def test_figures_of_a_very_confident_probe_are_computed_from_its_logits() -> None:
    """Beyond a logit of 37, every probability is 1 in float64."""
    logits, is_positive = np.array([-900.0, 40.0, 50.0, 60.0, 45.0]), np.array([False, True, True, True, False])
    weights = Weights(np.zeros(1), 0.0, True)
    made = Probe(weights, 0.0, {-6.0: 1.0, 0.0: 0.5, 6.0: 1.0}, logits, np.arange(5))
    figures = probe._figures(made, Target("good", is_positive), [])
    assert figures.auc == roc_auc_score(is_positive, logits) < 1
    assert figures.log_loss == pytest.approx(45 / 5)


@pytest.mark.usefixtures("four_penalties")
def test_a_probe_that_learned_nothing_says_so(dataset: Path, tmp_path: Path) -> None:
    coins = np.random.default_rng(3).random(60) < 0.5
    labels = write_labels(tmp_path / "l/coins.parquet", {row: bool(coins[row]) for row in range(60)})
    figures = pairmill.probe(dataset, tmp_path / "p.safetensors", labels=labels).figures
    share = figures.positives / figures.examples
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert figures.log_loss >= entropy and any("learned nothing" in note for note in figures.notes)
    honest = pairmill.probe(dataset, tmp_path / "p.safetensors", label_column="label").figures
    assert not any("learned nothing" in note for note in honest.notes)


@pytest.mark.usefixtures("four_penalties")
def test_rare_labels_are_noted(dataset: Path, tmp_path: Path) -> None:
    _, is_good = noisy()
    rows = [*np.flatnonzero(is_good)[-6:].tolist(), *np.flatnonzero(~is_good)[-60:].tolist()]
    labels = write_labels(tmp_path / "l/rare.parquet", {row: bool(is_good[row]) for row in rows})
    figures = pairmill.probe(dataset, tmp_path / "p.safetensors", labels=labels).figures
    assert any("% of the labels are 'good': look at the ROC AUC" in note for note in figures.notes)
    assert figures.baseline == max(figures.positives, figures.examples - figures.positives) / figures.examples
