"""Tests that relative scores equal direct transcriptions of their formulas in NumPy, whatever the shard size."""

import shutil
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logsumexp, softmax

from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.reader.dataset import Dataset
from pairmill.pipeline.score import sketch_scan, value_sketch
from pairmill.pipeline.score.classes import Classes
from pairmill.pipeline.score.density import Density
from pairmill.pipeline.score.kind import ScoreError
from pairmill.pipeline.score.value_sketch import ValueSketch
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.keys import key_halves, uid_hashes
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig
from tests.committed_shards import pair, write_dataset
from tests.unit.scores.embedded import add, column, stored, unit_vectors, write_embedded

ROWS = 800
IMAGES, TEXTS = unit_vectors(1, ROWS), unit_vectors(2, ROWS)
ALIKE = ((TEXTS + 1.5 * IMAGES) / np.linalg.norm(TEXTS + 1.5 * IMAGES, axis=1, keepdims=True)).astype(np.float32)
MISSING = (3, 700)


@pytest.fixture(scope="module", params=[90, 800])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_embedded(folder, IMAGES, ALIKE, request.param, missing=MISSING)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test can change."""
    return Path(shutil.copytree(original, tmp_path, dirs_exist_ok=True))


def direct_neg_clip(batches: list[list[int]], temperature: float) -> np.ndarray:
    """Equation 1 of the paper, row by row, in float64. `batches[i]`: the members of the batch of row i."""
    image, text = stored(IMAGES), stored(ALIKE)
    found = np.full(ROWS, np.nan)
    for row, batch in enumerate(batches):
        if row in MISSING:
            continue
        own = image[row] @ text[row]
        loss = logsumexp(text[batch] @ image[row] / temperature) + logsumexp(image[batch] @ text[row] / temperature)
        found[row] = own - temperature / 2 * loss
    return found


def test_neg_clip_with_one_batch_of_all_rows_equals_the_formula(folder: Path) -> None:
    add(folder, "neg", neg_clip={"temperature": 0.07, "repeats": 1})
    every = [row for row in range(ROWS) if row not in MISSING]
    assert np.allclose(column(folder, "neg"), direct_neg_clip([every] * ROWS, 0.07), atol=1e-5, equal_nan=True)


def test_neg_clip_compares_each_row_with_itself_and_the_rows_of_the_lowest_hashes(folder: Path) -> None:
    add(folder, "neg", neg_clip={"batch": 64, "repeats": 2, "seed": 3})
    uids = Dataset.of(Store(str(folder))).table(["uid"])["uid"]
    expected = []
    for seed in (6, 7):
        order = [int(row) for row in np.argsort(uid_hashes(uids, 4, seed)) if row not in MISSING]
        batches = [order[:64] if row in order[:64] else [*order[:63], row] for row in range(ROWS)]
        expected.append(direct_neg_clip(batches, 0.01))
    found = column(folder, "neg")
    assert np.allclose(found, np.mean(expected, axis=0), atol=1e-5, equal_nan=True)
    assert (found[~np.isnan(found)] <= 0).all()


def test_neg_clip_gives_the_values_of_the_worked_example(tmp_path: Path) -> None:
    angles = np.deg2rad([[0, 45, 90], [30, 60, 90]])
    images, texts = (np.stack([np.cos(each), np.sin(each)], axis=1).astype(np.float32) for each in angles)
    write_embedded(tmp_path, images, texts)
    add(tmp_path, "warm", neg_clip={"temperature": 0.5})
    direct = []
    for row in range(3):
        own = images[row] @ texts[row]
        direct.append(own - 0.25 * (logsumexp(texts @ images[row] / 0.5) + logsumexp(images @ texts[row] / 0.5)))
    assert np.allclose(column(tmp_path, "warm"), direct, atol=1e-3)  # the embeddings are stored as float16


def test_neg_clip_stays_distinct_for_pairs_that_fit_far_better_than_all_others(tmp_path: Path) -> None:
    images = np.eye(16, dtype=np.float32)
    angles = np.linspace(0.1, 1.0, 16)
    texts = np.cos(angles)[:, None] * images + np.sin(angles)[:, None] * np.roll(images, 1, axis=1)
    write_embedded(tmp_path, images, texts.astype(np.float32))
    add(tmp_path, "neg", neg_clip={"temperature": 0.01})
    found, (image, text) = column(tmp_path, "neg"), (stored(images), stored(texts.astype(np.float32)))
    cosines = (image @ text.T).astype(np.longdouble) / 0.01
    gaps = [np.exp(each - np.diag(cosines)[:, None]) for each in (cosines, cosines.T)]
    expected = -0.005 * sum(np.log1p((gap - np.diag(np.diag(gap))).sum(axis=1)) for gap in gaps)
    assert (found < 0).all() and len(set(found)) == 16
    assert np.allclose(found, expected.astype(np.float64), rtol=1e-3)


@pytest.mark.parametrize(("norm", "order"), [("inf", np.inf), (np.inf, np.inf), ("2", 2), (2, 2)])  # as read from YAML
def test_norm_sim_is_the_norm_of_all_cosines(folder: Path, tmp_path: Path, norm: str | float, order: float) -> None:
    targets = unit_vectors(9, 37)
    np.save(tmp_path / "targets.npy", targets)
    add(folder, "sim", norm_sim={"target": str(tmp_path / "targets.npy"), "norm": norm})
    expected = np.linalg.norm(stored(IMAGES) @ stored(targets).T, ord=order, axis=1)
    expected[list(MISSING)] = np.nan
    assert np.allclose(column(folder, "sim"), expected, atol=1e-5, equal_nan=True)


def test_norm_sim_to_a_dataset_uses_the_embeddings_of_its_pictures(folder: Path, tmp_path: Path) -> None:
    targets = unit_vectors(9, 37)
    write_embedded(tmp_path / "targets", targets, targets, 10)
    add(folder, "sim", norm_sim={"target": str(tmp_path / "targets"), "norm": "max"})
    expected = (stored(IMAGES) @ stored(targets).T).max(axis=1)
    expected[list(MISSING)] = np.nan
    assert np.allclose(column(folder, "sim"), expected, atol=1e-5, equal_nan=True)


def test_targets_without_a_valid_embedding_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    targets = unit_vectors(9, 37)
    targets[3], targets[5, 2] = 0, np.nan
    np.save(tmp_path / "targets.npy", targets)
    target = {"target": str(tmp_path / "targets.npy"), "norm": "max"}
    notes = ["2 of 37 targets left out: the embedding is zero or not finite"]
    assert add(folder, "sim", norm_sim=target).notes == add(folder, "sim", norm_sim=target).notes == notes
    valid = stored(np.delete(targets, [3, 5], axis=0))
    expected = (stored(IMAGES) @ valid.T).max(axis=1)
    assert np.allclose(np.delete(column(folder, "sim"), MISSING), np.delete(expected, MISSING), atol=1e-5)


def test_targets_of_an_unfinished_dataset_are_used_with_a_note(tmp_path: Path) -> None:
    write_embedded(tmp_path / "out", IMAGES[:50], TEXTS[:50])
    target = tmp_path / "targets"
    write_embedded(target, unit_vectors(9, 20), unit_vectors(9, 20), 10, planned_rows=30)
    notes = add(tmp_path / "out", "sim", norm_sim=str(target)).notes
    assert notes == [f"{target} is not finished: 1 planned shard missing from the targets"]
    expected = np.abs(stored(IMAGES[:50]) @ stored(unit_vectors(9, 20)).T).max(axis=1)
    assert np.allclose(column(tmp_path / "out", "sim"), expected, atol=1e-5)


def test_density_is_the_mean_cosine_to_the_nearest_other_pictures(folder: Path) -> None:
    add(folder, "dense", density={"sample": ROWS, "neighbors": 5, "clusters": 8})
    cosines = stored(IMAGES) @ stored(IMAGES).T
    np.fill_diagonal(cosines, -np.inf)
    cosines[:, list(MISSING)] = -np.inf
    expected = np.sort(cosines, axis=1)[:, -5:].mean(axis=1)
    expected[list(MISSING)] = np.nan
    assert np.allclose(column(folder, "dense"), expected, atol=1e-5, equal_nan=True)
    clusters, cosine = column(folder, "dense_cluster"), column(folder, "dense_centroid")
    assert set(clusters[~np.isnan(clusters)]) == set(range(8))
    assert np.nanmin(cosine) > 0 and np.nanmean(cosine) > 0.4  # random centers are about 0.25 from the nearest of eight


def test_a_mix_equals_its_formula_over_exact_ranks(folder: Path) -> None:
    add(folder, "mixed", mix="0.7 * rank(similarity) + 0.3 * rank(-similarity_b32) + 0 * zscore(similarity)")
    add(folder, "z", mix="zscore(similarity)")
    add(folder, "far", mix="rank(1700000000 + similarity)")  # in float32, all sums are equal
    values = column(folder, "similarity")
    known = values[~np.isnan(values)]
    ranks = np.array([np.nan if np.isnan(value) else (known < value).mean() for value in values])
    reverse = np.array([np.nan if np.isnan(value) else (known > value).mean() for value in values])
    assert np.allclose(column(folder, "mixed"), 0.7 * ranks + 0.3 * reverse, atol=1e-3, equal_nan=True)
    assert np.allclose(column(folder, "z"), (values - known.mean()) / known.std(), atol=1e-4, equal_nan=True)
    assert np.allclose(column(folder, "far"), ranks, atol=1e-3, equal_nan=True)


def test_a_mix_of_a_missing_score_says_how_to_add_it(folder: Path) -> None:
    with pytest.raises(ScoreError, match=rf"it is a score, add it first:\n  pairmill score {folder} aesthetic --score"):
        add(folder, "quality", mix={"formula": "rank(aesthetic) + similarity"})


@pytest.fixture(params=[1 << 18, 500], ids=["every value", "buckets"])
def most_exact(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(value_sketch, "MAX_EXACT", request.param)
    return int(request.param)


def test_ranks_are_the_share_of_lower_values_and_sketches_merge_in_any_order(most_exact: int) -> None:
    rng = np.random.default_rng(5)
    values = np.concatenate(
        [rng.standard_normal(3_000), -rng.exponential(100, 3_000), [0.0, -0.0, np.nan, np.inf, -np.inf]]
    )
    parts = [ValueSketch.of(part) for part in np.array_split(values, 7)]
    whole = ValueSketch.of(values)
    for order in (parts[::-1], [ValueSketch.merged(parts[:3]), ValueSketch.merged(parts[3:])]):
        merged = ValueSketch.merged(order)
        for name, tensor in whole.tensors().items():
            assert np.allclose(merged.tensors()[name], tensor, rtol=1e-13)
    known = values[~np.isnan(values)]
    exact = np.array([(known < value).mean() for value in known])
    assert np.abs(whole.ranks(known) - exact).max() <= (2 / 6_000 if most_exact < 6_000 else 1e-12)
    assert np.isnan(whole.ranks(np.array([np.nan]))[0])
    assert whole.ranks(np.array([-1e9, 1e9])).tolist() == [1 / 6_004, 6_003 / 6_004]  # one value is infinite


def test_the_rank_of_tied_values_is_the_share_of_lower_values(most_exact: int) -> None:
    rng = np.random.default_rng(6)
    ends = np.repeat([0.0, 0.1, 1 / 3, 1.0], [700, 2_000, 900, 4_000])
    near = np.repeat([0.7, 0.7 + 1e-9], [500, 600])  # both in one bucket of the sketch
    values = rng.permutation(np.concatenate([ends, near, rng.uniform(0.11, 0.3, 1_000).astype(np.float32)]))
    sketch = ValueSketch.merged([ValueSketch.of(part) for part in np.array_split(values, 5)])
    ties = np.unique(np.concatenate([ends, near]))
    assert np.allclose(sketch.ranks(ties), [(values < value).mean() for value in ties], atol=1e-12)
    assert (ValueSketch.of(np.full(9, 1 / 3)).ranks(np.array([1 / 3])) == 0).all()


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_integers_that_are_equal_as_float64_have_different_ranks(
    most_exact: int, tmp_path: Path, kind: pa.DataType
) -> None:
    offset = (1 << 60) if kind == pa.uint64() else -(1 << 60)
    near = offset + np.random.default_rng(8).integers(0, 3_000, 1_000)
    numbers: list[int | None] = [*near.tolist(), None, 0, (1 << 63) - 1]
    rows = [pair(f"number {at}", 0.3, number=number) for at, number in enumerate(numbers)]
    store = write_dataset(tmp_path, [rows[:200], rows[200:]], extra=pa.schema([("number", kind)]))
    add(tmp_path, "ranked", mix="rank(number)")
    table = Dataset.of(store).table(["number", "ranked"])
    found = dict(zip(table["number"].to_pylist(), table["ranked"].to_pylist(), strict=True))
    known = sorted(number for number in numbers if number is not None)
    assert found.pop(None) is None
    expected = {number: bisect_left(known, number) / len(known) for number in known}
    assert found == pytest.approx(expected, abs=1e-6)


_RNG = np.random.default_rng(9)
_CUBES = np.abs(_RNG.standard_normal(5_000)) ** 3


@pytest.mark.parametrize(
    "values",
    [
        1.7e9 + 1_000 * _CUBES,
        1 - _CUBES / 1e6,
        np.where(_RNG.random(5_000) < 0.5, -1.7e9 - _CUBES, np.where(_CUBES < 1, 1e-300 * _CUBES, np.inf)),
        1.7e9 + np.where(_RNG.random(5_000) < 0.6, np.round(_CUBES), _CUBES / 1_000),
        (1 << 60) + (1e6 * _CUBES).astype(np.int64),
    ],
    ids=["Unix seconds", "almost 1", "two scales", "ties", "integers that are equal as float64"],
)
def test_no_rank_is_off_by_more_than_the_bound_however_close_the_values_and_whatever_the_shard_size(
    values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Shards:
        rows: int

        def scan(self, *scanned: Any) -> Iterator[object]:
            *_, function, arguments = scanned
            for number in range(0, len(values), self.rows):
                yield function(self, number, 0, *arguments)

        def read(self, start: int, generation: int) -> pa.Table:
            return pa.table({"x": values[start : start + self.rows]})

    most, exact = 0.001, np.searchsorted(np.sort(values), values) / len(values)
    monkeypatch.setattr(value_sketch, "MAX_EXACT", 200)
    monkeypatch.setattr(value_sketch, "MAX_ERROR", most)
    found = []
    for size in (300, 5_000):
        monkeypatch.setattr(sketch_scan, "scan", Shards(size).scan)
        scanned: Any = (None, None)
        (sketch,) = sketch_scan.sketch_values(*scanned, [Expression("x")], [True], "all")
        found.append(sketch.ranks(values))
    assert np.array_equal(*found)
    assert 0 < np.abs(found[0] - exact).max() <= most
    assert len(sketch.counts.low) < len(set(values.tolist()))


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e8, -1.7e9])
def test_zscores_equal_those_of_numpy_however_far_the_values_are_from_zero(offset: float) -> None:
    values = offset + np.random.default_rng(7).standard_normal(1_000)
    with_infinite = np.append(values, [np.inf, -np.inf, np.nan])
    sketch = ValueSketch.merged([ValueSketch.of(part) for part in np.array_split(with_infinite, 9)])
    assert np.allclose(sketch.zscores(values), (values - values.mean()) / values.std(), atol=1e-6)
    same = ValueSketch.merged([ValueSketch.of(np.full(3, offset + 0.1)), ValueSketch.of(np.full(4, offset + 0.1))])
    assert (same.zscores(np.array([offset + 0.1])) == 0).all()


def test_a_sketch_from_an_earlier_version_still_gives_the_same_results() -> None:
    values = np.array([0.1, 0.25, 0.25, 3.0])
    ordered = (values.view(np.uint64) | np.uint64(1 << 63)) >> np.uint64(38)
    buckets, counts = np.unique(ordered, return_counts=True)
    sums = np.array([values.sum(), (values**2).sum()])
    sketch = ValueSketch.from_tensors({"buckets": buckets, "counts": counts.astype(np.uint64), "sums": sums})
    inside = 0.25 * (1 + 2**-15)  # half a bucket above 0.25
    assert np.allclose(sketch.ranks(np.array([0.25, inside, 3.0, 9.0])), [1 / 4, 2 / 4, 3 / 4, 1], atol=1e-9)
    assert np.allclose(sketch.zscores(values), (values - values.mean()) / values.std())


def test_a_mix_of_many_shards_keeps_few_sketches_in_memory_and_ranks_over_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_embedded(tmp_path, IMAGES[:200], TEXTS[:200], 10, missing=(3,))
    sizes, honest = list[int](), ValueSketch.merged
    monkeypatch.setattr(ValueSketch, "merged", lambda parts: sizes.append(len(parts)) or honest(parts))
    monkeypatch.setattr(sketch_scan, "_SUMMARIES_AT_ONCE", 4)
    add(tmp_path, "mixed", mix="clip(rank(similarity), 0.25, 0.75)")
    assert max(sizes) <= 5
    values = column(tmp_path, "similarity")
    known = values[~np.isnan(values)]
    ranks = np.array([np.nan if np.isnan(value) else (known < value).mean() for value in values])
    assert np.allclose(column(tmp_path, "mixed"), np.clip(ranks, 0.25, 0.75), atol=1e-6, equal_nan=True)


def test_an_error_in_a_mix_quotes_the_formula_as_written(tmp_path: Path) -> None:
    write_embedded(tmp_path, IMAGES[:50], TEXTS[:50])
    for formula, shown in (
        ("rank(similarity) if kept else 0", "'rank(similarity) if kept else 0' is not supported"),
        ("rank(similarity) + kept", "'rank(similarity) + kept' cannot be computed: rank(similarity) is a number"),
    ):
        with pytest.raises(ScoreError) as caught:
            add(tmp_path, "mixed", mix=formula)
        assert shown in str(caught.value) and "pairmill" not in str(caught.value)


def test_pictures_shared_by_several_rows_count_once(tmp_path: Path) -> None:
    """For example, the five captions of a picture are in five rows with the same SHA-256 or the same embedding."""
    pictures, rows = unit_vectors(1, 60), np.repeat(np.arange(60), 5)
    shaken = (pictures[rows] + 1e-3 * unit_vectors(4, 300)).astype(np.float32)  # as if embedded in various batch sizes
    shaken /= np.linalg.norm(shaken, axis=1, keepdims=True)
    hashes = [f"{row:064x}" for row in rows]
    write_embedded(tmp_path / "vectors", pictures[rows], unit_vectors(2, 300))
    write_embedded(tmp_path / "bytes", shaken, unit_vectors(2, 300), sha256=hashes)
    cosines = stored(pictures) @ stored(pictures).T
    np.fill_diagonal(cosines, -np.inf)
    expected = np.sort(cosines, axis=1)[:, -4:].mean(axis=1)[rows]
    np.save(tmp_path / "targets.npy", pictures)
    write_embedded(tmp_path / "out", IMAGES[:90], TEXTS[:90])
    for name, tolerance in (("vectors", 1e-5), ("bytes", 3e-3)):
        add(tmp_path / name, "dense", density={"sample": 300, "neighbors": 4, "clusters": 5})
        assert np.allclose(column(tmp_path / name, "dense"), expected, atol=tolerance)
        assert verify(Store(str(tmp_path / name)), rescore=40).problems == []
        add(tmp_path / "out", name, norm_sim={"target": str(tmp_path / name), "norm": "2"})
        direct = np.linalg.norm(stored(IMAGES[:90]) @ stored(pictures).T, axis=1)
        assert np.allclose(column(tmp_path / "out", name), direct, atol=tolerance)


def test_a_density_state_from_an_earlier_version_still_leaves_out_only_the_row_itself(tmp_path: Path) -> None:
    write_embedded(tmp_path, IMAGES[:40], TEXTS[:40])
    rows = Dataset.of(Store(str(tmp_path))).table(["uid", "sha256", "image_embedding_b32"])
    uids = np.stack(key_halves(rows["uid"], "uid"), axis=1)
    state = State({"uids": uids, "vectors": IMAGES[:40].astype(np.float16), "centroids": IMAGES[:2]})
    kind = Density("d", ScoreConfig.model_validate({"density": {"model": "b32", "neighbors": 3}}))
    cosines = stored(IMAGES[:40]) @ stored(IMAGES[:40]).T
    np.fill_diagonal(cosines, -np.inf)
    found = kind.open(state, RunConfig())(rows)["d"].to_numpy()
    assert np.allclose(found, np.sort(cosines, axis=1)[:, -3:].mean(axis=1), atol=1e-5)


@pytest.mark.parametrize("bias", [-12.9, None], ids=["sigmoid", "softmax"])
def test_classes_are_sorted_by_cosine_even_if_all_probabilities_saturate(bias: float | None) -> None:
    spread = np.linspace(0.05, 1.3, 6)[:, None] * (1 if bias is None else 0.1)
    classes = np.concatenate([np.cos(spread), np.sin(spread)], axis=1).astype(np.float32)[[3, 1, 5, 0, 4, 2]]
    kind = Classes("c", ScoreConfig.model_validate({"classes": {"model": "m", "top": 6}}))
    values = {"names": list("abcdef"), "logit_scale": 117.0 if bias else 5_000.0, "logit_bias": bias}
    query = np.stack([np.cos([0, 0.05, 1.3]), np.sin([0, 0.05, 1.3])], axis=1).astype(np.float16)
    rows = pa.table({"image_embedding_m": pa.FixedSizeListArray.from_arrays(pa.array(query.ravel()), 2)})
    found = kind.open(State({"classes": classes}, values), RunConfig())(rows)
    exact = stored(query) @ classes.T.astype(np.float64)
    order = np.argsort(-exact, axis=1)
    assert found["c_index"].to_pylist() == order[:, 0].tolist()
    assert found["c_top"].to_pylist() == [["abcdef"[each] for each in row] for row in order]
    logits = np.take_along_axis(values["logit_scale"] * exact, order, axis=1)
    expected = softmax(logits, axis=1) if bias is None else expit(logits + bias)
    assert np.allclose(found["c_top_probability"].to_pylist(), expected, atol=1e-4)
