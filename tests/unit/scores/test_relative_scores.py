"""Relative scores equal direct transcriptions of their formulas in NumPy, whatever the shard size."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.reader.dataset import Dataset
from pairmill.pipeline.score.kind import ScoreError
from pairmill.pipeline.score.value_sketch import ValueSketch
from pairmill.pipeline.select.keys import uid_hashes
from tests.unit.scores.embedded import add, column, stored, unit_vectors, write_embedded

ROWS = 2_000
IMAGES, TEXTS = unit_vectors(1, ROWS), unit_vectors(2, ROWS)
ALIKE = ((TEXTS + 1.5 * IMAGES) / np.linalg.norm(TEXTS + 1.5 * IMAGES, axis=1, keepdims=True)).astype(np.float32)
MISSING = (3, 700)


@pytest.fixture(params=[90, 2_000])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_embedded(tmp_path, IMAGES, ALIKE, request.param, missing=MISSING)
    return tmp_path


def direct_neg_clip(batches: list[list[int]], temperature: float) -> np.ndarray:
    """Equation 1 of the paper, row by row, in float64: `batches[i]` are the members of the batch of row i."""
    image, text = stored(IMAGES), stored(ALIKE)
    found = np.full(ROWS, np.nan)
    for row, batch in enumerate(batches):
        if row in MISSING:
            continue
        own = image[row] @ text[row]
        loss = logsumexp(text[batch] @ image[row] / temperature) + logsumexp(image[batch] @ text[row] / temperature)
        found[row] = own - temperature / 2 * loss
    return found


def test_neg_clip_of_one_batch_of_all_rows_is_the_formula(folder: Path) -> None:
    add(folder, "neg", neg_clip={"temperature": 0.07, "repeats": 1})
    every = [row for row in range(ROWS) if row not in MISSING]
    assert np.allclose(column(folder, "neg"), direct_neg_clip([every] * ROWS, 0.07), atol=1e-5, equal_nan=True)


def test_neg_clip_compares_each_row_with_itself_and_the_rows_of_lowest_hash(folder: Path) -> None:
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


def test_neg_clip_of_the_worked_example(tmp_path: Path) -> None:
    angles = np.deg2rad([[0, 45, 90], [30, 60, 90]])
    images, texts = (np.stack([np.cos(each), np.sin(each)], axis=1).astype(np.float32) for each in angles)
    write_embedded(tmp_path, images, texts)
    add(tmp_path, "warm", neg_clip={"temperature": 0.5})
    direct = []
    for row in range(3):
        own = images[row] @ texts[row]
        direct.append(own - 0.25 * (logsumexp(texts @ images[row] / 0.5) + logsumexp(images @ texts[row] / 0.5)))
    assert np.allclose(column(tmp_path, "warm"), direct, atol=1e-3)  # the embeddings are stored as float16


def test_neg_clip_of_pairs_that_fit_far_better_than_all_others_stays_distinct(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("norm", "order"), [("inf", np.inf), (np.inf, np.inf), ("2", 2), (2, 2)])  # as YAML reads them
def test_norm_sim_is_the_norm_of_all_cosines(folder: Path, tmp_path: Path, norm: str | float, order: float) -> None:
    targets = unit_vectors(9, 37)
    np.save(tmp_path / "targets.npy", targets)
    add(folder, "sim", norm_sim={"target": str(tmp_path / "targets.npy"), "norm": norm})
    expected = np.linalg.norm(stored(IMAGES) @ stored(targets).T, ord=order, axis=1)
    expected[list(MISSING)] = np.nan
    assert np.allclose(column(folder, "sim"), expected, atol=1e-5, equal_nan=True)


def test_norm_sim_to_a_dataset_is_that_to_its_embeddings(folder: Path, tmp_path: Path) -> None:
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


def test_density_is_the_mean_cosine_to_the_nearest_others(folder: Path) -> None:
    add(folder, "dense", density={"sample": ROWS, "neighbors": 5, "clusters": 8})
    cosines = stored(IMAGES) @ stored(IMAGES).T
    np.fill_diagonal(cosines, -np.inf)
    cosines[:, list(MISSING)] = -np.inf
    expected = np.sort(cosines, axis=1)[:, -5:].mean(axis=1)
    expected[list(MISSING)] = np.nan
    assert np.allclose(column(folder, "dense"), expected, atol=1e-5, equal_nan=True)
    clusters, cosine = column(folder, "dense_cluster"), column(folder, "dense_centroid")
    assert set(clusters[~np.isnan(clusters)]) == set(range(8))
    assert np.nanmin(cosine) > 0 and np.nanmean(cosine) > 0.4  # random centers are at 0.25 from the nearest of eight


def test_a_mix_is_its_formula_over_exact_ranks(folder: Path) -> None:
    add(folder, "mixed", mix="0.7 * rank(similarity) + 0.3 * rank(-similarity_b32) + 0 * zscore(similarity)")
    add(folder, "z", mix="zscore(similarity)")
    values = column(folder, "similarity")
    known = values[~np.isnan(values)]
    ranks = np.array([np.nan if np.isnan(value) else (known < value).mean() for value in values])
    reverse = np.array([np.nan if np.isnan(value) else (known > value).mean() for value in values])
    assert np.allclose(column(folder, "mixed"), 0.7 * ranks + 0.3 * reverse, atol=1e-3, equal_nan=True)
    assert np.allclose(column(folder, "z"), (values - known.mean()) / known.std(), atol=1e-4, equal_nan=True)


def test_a_mix_of_a_score_that_is_not_there_says_how_to_add_it(folder: Path) -> None:
    with pytest.raises(ScoreError, match="add it first: pairmill score OUT aesthetic"):
        add(folder, "quality", mix={"formula": "rank(aesthetic) + similarity"})


def test_ranks_are_exact_within_a_bucket_and_sketches_merge_in_any_order() -> None:
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.standard_normal(3_000), -rng.exponential(100, 3_000), [0.0, -0.0, np.nan, np.inf]])
    parts = np.array_split(values, 7)
    whole = ValueSketch.of(values)
    merged = ValueSketch.merged([ValueSketch.of(part) for part in reversed(parts)])
    assert (merged.buckets == whole.buckets).all() and (merged.counts == whole.counts).all()
    finite = values[np.isfinite(values)]
    exact = np.array([(finite < value).mean() for value in finite])
    assert np.abs(whole.ranks(finite) - exact).max() < 2 / 6_000
    assert np.isnan(whole.ranks(np.array([np.nan]))[0])
    assert whole.ranks(np.array([-1e9, 1e9])).tolist() == [0.0, 1.0]
