"""Tests thresholds against scikit-learn's curve, zero-shot accuracy against NumPy, and the page."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.main import app
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.evaluate import measure
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.intervals import wilson
from pairmill.pipeline.evaluate.labeled_rows import RowFilter
from pairmill.pipeline.evaluate.labels import LabelSource
from pairmill.pipeline.evaluate.measure import measure_zero_shot
from pairmill.pipeline.evaluate.page import EvaluationPage, render
from pairmill.pipeline.evaluate.sections import shortest
from pairmill.pipeline.evaluate.thresholds import ThresholdCurve
from pairmill.pipeline.evaluate.zero_shot import ClassIndex
from pairmill.pipeline.reader.embeddings import Embeddings
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.select.expressions import Expression
from pairmill.schemas.errors import JobError
from tests.unit.evaluate.embedded import ALIAS, unit, write_embedded, write_labels
from tests.unit.evaluate.test_retrieval import real

ROWS = 300


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A dataset with a score of few distinct values, null in rows 0 and 1, and labels that it partly predicts."""
    rng = np.random.default_rng(8)
    scores = np.round(rng.normal(0.3, 0.05, ROWS), 2).astype(np.float32)
    is_good = scores + rng.normal(0, 0.04, ROWS) > 0.31
    folder = tmp_path_factory.mktemp("scored") / "out"
    extra = pa.schema([("clip", pa.float32()), ("is_good", pa.bool_()), ("word", pa.string())])
    columns = {
        "clip": [None, float("nan"), *scores[2:].tolist()],
        "is_good": is_good.tolist(),
        "word": ["x"] * ROWS,
    }
    write_embedded(folder, unit(rng.normal(size=(ROWS, 4))), shard_rows=70, columns=columns, extra=extra)
    write_labels(folder / "labels/mine.parquet", {row: bool(is_good[row]) for row in range(ROWS)})
    return folder, scores[2:].astype(np.float64), is_good[2:]


def test_precision_and_recall_equal_those_of_scikit_learn_at_every_threshold(
    scored: tuple[Path, np.ndarray, np.ndarray],
) -> None:
    _, scores, is_good = scored
    curve = ThresholdCurve.of(scores, is_good)
    precision, recall, thresholds = precision_recall_curve(is_good, scores)
    points = [curve.point(index) for index in range(len(curve))]
    assert [point.threshold for point in points] == thresholds[::-1].tolist()
    assert np.allclose([point.precision for point in points], precision[:-1][::-1])
    assert np.allclose([point.recall for point in points], recall[:-1][::-1])
    assert curve.auc == roc_auc_score(is_good, scores)
    assert curve.average_precision == average_precision_score(is_good, scores)
    for wanted in (0.3, 0.7, 0.9, 1.0):
        expected = [each for each, reached in zip(thresholds, precision, strict=False) if reached >= wanted]
        found = curve.for_precision(wanted)
        assert (None if found is None else curve.thresholds[found]) == (min(expected) if expected else None)
        certain = curve.for_precision(wanted, is_certain=True)
        lows = [each.threshold for each in points if wilson(each.hits, each.kept).low >= wanted]
        assert (None if certain is None else curve.thresholds[certain]) == (min(lows) if lows else None)
    assert curve.spread(5)[-1] == len(curve) - 1 and len(curve.spread(5)) <= 5


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int64(), [(1 << 53) + row for row in range(40)]),
        (pa.uint64(), [(1 << 64) - 40 + row for row in range(40)]),
        (pa.float64(), [-np.inf, -1.7e308, 0.1, *range(1, 20), *range(21, 35), 1e300, 1.7e308, np.inf, np.inf]),
        (pa.float64(), [5e-324 * (row // 2) for row in range(40)]),
        *((kind, np.arange(40, dtype=np.float32) / 40) for kind in (pa.float64(), pa.float32())),
        (pa.float64(), (1 << 24) * np.arange(1, 41, dtype=np.float32) * np.float32(1.1)),
        (pa.float16(), np.arange(40, dtype=np.float16) / 40),
        *((pa.float32(), np.arange(40, dtype=np.float32) * np.float32(unit)) for unit in (1.1e-32, 8.7e36)),
    ],
)
def test_every_threshold_keeps_exactly_the_rows_that_were_counted(
    tmp_path: Path, kind: pa.DataType, values: list[float]
) -> None:
    """Integers above 2^53, infinite values, and ranges that are too large or too small for a float64."""
    is_good = [row % 7 == 0 or row > 25 for row in range(40)]
    extra = pa.schema([("score", kind), ("is_good", pa.bool_())])
    columns = {"score": values, "is_good": is_good}
    write_embedded(tmp_path / "out", unit(np.zeros((40, 4)) + 1), columns=columns, extra=extra)
    page = str(tmp_path / "page.html")
    result = pairmill.evaluate(tmp_path / "out", score="score", page=page, label_column="is_good")
    found = result.threshold
    json.dumps(result.as_dict(), allow_nan=False)  # has no numbers that JSON lacks
    assert found is not None and found.rows == 40 and len(found.points) >= 20
    positions = np.searchsorted(sorted(set(values)), values)
    assert found.auc == roc_auc_score(is_good, positions)
    whole = pa.table({"score": pa.array(values, kind)})
    for point in found.points:
        kept = Expression(f"score >= {shortest(point.threshold, kind)}").evaluate(whole).to_pylist()
        assert sum(kept) == point.kept
        assert point.precision == sum(good for good, each in zip(is_good, kept, strict=True) if each) / point.kept


def test_a_threshold_for_very_many_rows_is_measured_on_a_sample_with_a_note(
    scored: tuple[Path, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_MAX_ROWS", 100)
    found = pairmill.evaluate(scored[0], score="clip", label_column="is_good").threshold
    assert found is not None and found.rows == 100
    assert f"sampled 100 of {ROWS - 2} labeled rows, by a hash of the uid" in found.notes


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["cat", "dog"], [1, 0, 2], [1, 0, -1]),
        (["0", "1", "two"], [1, 0, 2], [1, 0, 2]),  # both readings agree
        (["1990", "1991"], [1991, 1990, 1], [1, 0, -1]),  # 1 is no class number here
        (["cat", "1", "0"], ["1", "0", "2"], [1, 2, -1]),  # text is always a name
    ],
)
def test_integer_labels_are_all_numbers_or_all_names(
    names: list[str], labels: list[object], expected: list[int]
) -> None:
    assert ClassIndex(names).of(pa.array(labels)).tolist() == expected


@pytest.mark.parametrize("names", [["1", "2", "3"], ["cat", "0"], ["cat", "1990"], ["1990", "0"]])
def test_integer_labels_that_could_be_numbers_or_names_are_refused(names: list[str]) -> None:
    with pytest.raises(EvaluateError, match=r"class [01] is named '(1|0|1990)'. Use class names as labels, as text"):
        ClassIndex(names).of(pa.array([0, 1]))


def test_all_unknown_labels_are_counted_though_only_some_are_kept() -> None:
    index = ClassIndex(["cat"])
    for start in range(0, 5_000, 100):
        index.of(pa.array([*(f"name {number}" for number in range(start, start + 99)), "dog"]))
    assert len(index._unknown) <= 1_000
    assert index.facts()[0].startswith("5,000 rows left out: label not among the classes (for example 'dog')")


def test_a_printed_threshold_keeps_as_many_rows_as_were_counted(scored: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, scores, is_good = scored
    found = pairmill.evaluate(folder, score="clip", labels="labels/mine.parquet", precision=0.8).threshold
    assert found is not None and found.found is not None
    assert (found.rows, found.positives, found.auc) == (ROWS - 2, is_good.sum(), roc_auc_score(is_good, scores))
    assert list(found.notes) == ["2 labeled rows left out: no clip"]
    assert found.found in found.points and found.found.precision >= 0.8
    subset = pairmill.select(
        folder, "sure", steps=f"where: clip >= {shortest(found.found.threshold, pa.float32())}", all_pairs=True
    )
    assert subset.rows_out == found.found.kept == (scores >= found.found.threshold).sum()
    column = pairmill.evaluate(folder, score="clip", label_column="is_good", precision=0.8).threshold
    assert column == found


def test_the_command_prints_a_table_and_json_and_writes_a_page_without_scripts(
    scored: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    folder, page = scored[0], tmp_path / "page.html"
    arguments = ["evaluate", str(folder), "--score", "clip", "--labels", "labels/mine.parquet", "--retrieval"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(page), "--json"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    assert result["threshold"]["score"] == "clip" and result["retrieval"]["pictures"] == ROWS
    assert "clip >=  kept" in done.stdout and "query    number" in done.stdout
    text = page.read_text()
    assert "<script" not in text and "default-src 'none'" in text and text.count("<svg") == 2


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"label_column": "is_good"}, "say what to compare with the labels: --classes FILE, or --score COLUMN"),
        ({"score": "clip", "classes": "imagenet", "label_column": "is_good"}, "give only one of --classes and --score"),
        ({"score": "clip"}, "specify the labels: --labels FILE"),
        ({"classes": "imagenet"}, "specify the labels: --labels FILE"),
        ({"classes": "imagenet", "label_column": "word", "positive": "x"}, "use it with --score"),
        ({"score": "word", "label_column": "is_good"}, "the column 'word' is string; a score must be a number"),
        ({"score": "none", "label_column": "is_good"}, "no column 'none'"),
        ({"score": "clip", "label_column": "is_good", "precision": 90}, "--precision 90: give a number"),
        ({"classes": "imagenet", "templates": "mine", "label_column": "word"}, "templates: .*openai-80"),
    ],
)
def test_impossible_evaluations_are_refused_in_one_line(
    scored: tuple[Path, np.ndarray, np.ndarray], keywords: dict[str, object], message: str
) -> None:
    with pytest.raises((JobError, EvaluateError), match=message):
        pairmill.evaluate(scored[0], **keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize("shard_rows", [90, 500])
def test_zero_shot_accuracy_equals_a_few_lines_of_numpy(tmp_path: Path, shard_rows: int) -> None:
    """The classes are the first captions of 100 real pictures; the labels are their numbers or names."""
    images, texts, sha256 = real()
    classes, numbers = texts[::5].astype(np.float32), np.repeat(np.arange(100), 5)
    names = [f"<b>class {number}</b>" for number in range(98)] + ["twin", "twin"]
    labels = [names[number] for number in numbers]
    labels[3], labels[4] = "nothing", None  # type: ignore[call-overload]
    extra = pa.schema([("number", pa.int16()), ("name", pa.dictionary(pa.int32(), pa.string()))])
    images = images.copy()
    images[10] = np.nan
    columns = {"number": numbers.tolist(), "name": labels, "sha256": sha256}
    store = write_embedded(tmp_path / "out", images, texts, shard_rows, columns, extra)
    rows = RowFilter(Snapshot.of(Store(store.root)))
    embeddings = Embeddings.of(rows.snapshot, ALIAS)
    result, _ = measure_zero_shot(rows, embeddings, LabelSource(column="number"), names, lambda: classes)

    used = np.setdiff1d(np.arange(500), [10])
    order = np.argsort(-(unit(images.astype(np.float16).astype(np.float32)) @ classes.T), axis=1)
    hits = order == numbers[:, None]
    assert (result.rows, result.classes) == (499, 100)
    assert (result.top1, result.top5) == (hits[used, 0].mean(), hits[used, :5].any(axis=1).mean())
    per_class = [hits[used, 0][numbers[used] == number].mean() for number in range(100)]
    assert result.mean_per_class == pytest.approx(np.mean(per_class))
    assert [each.top1 / each.rows for each in result.per_class] == sorted(per_class)
    wrong = [(names[numbers[row]], names[order[row, 0]]) for row in used if not hits[row, 0]]
    assert sum(each.count for each in result.confusions) == len(wrong)
    assert {(each.true, each.predicted): each.count for each in result.confusions} == {
        pair: wrong.count(pair) for pair in wrong
    }

    by_name, section = measure_zero_shot(rows, embeddings, LabelSource(column="name"), names, lambda: classes)
    assert by_name.rows == 499 - 2 - 10
    assert list(by_name.notes) == [
        "1 row left out: label not among the classes (for example 'nothing')",
        "10 rows left out: label shared by several classes; use class numbers as labels instead",
        "1 labeled row left out: no embedding of the picture",
    ]
    page = render(EvaluationPage("pairmill evaluate", "out", [], [section]))
    assert "&lt;b&gt;class" in page and "<b>class" not in page


def test_classes_of_a_different_dimension_and_labels_that_are_not_classes_are_refused(tmp_path: Path) -> None:
    extra = pa.schema([("number", pa.int16())])
    store = write_embedded(tmp_path / "out", np.eye(4), columns={"number": [7, 8, 9, 10]}, extra=extra)
    rows, source = RowFilter(Snapshot.of(store)), LabelSource(column="number")
    embeddings = Embeddings.of(rows.snapshot, ALIAS)
    with pytest.raises(EvaluateError, match="the class embeddings have 3 dimensions, but the picture"):
        measure_zero_shot(rows, embeddings, source, list("abcdefgh"), lambda: np.eye(8, 3, dtype=np.float32))
    with pytest.raises(
        EvaluateError, match=r"the label of a class\n4 rows left out: label not among the classes \(for example '7'\)"
    ):
        measure_zero_shot(rows, embeddings, source, ["a", "b"], never)
    with pytest.raises(EvaluateError, match="no column 'nothing'"):
        measure_zero_shot(rows, embeddings, LabelSource(column="nothing"), ["a", "b"], never)


def never() -> np.ndarray:
    raise AssertionError("classes are embedded, which takes a long time, though no label is one of them")
