"""Compares dedup by embedding with brute force over all pairs of rows, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from pairmill.jobs.select import select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_rows, read_subset
from pairmill.pipeline.select.semantic import centers, near
from pairmill.pipeline.select.semantic.near import STAYS, near_rows
from pairmill.pipeline.select.semantic.vectors import on_grid
from pairmill.pipeline.select.steps import dedup_embedding
from pairmill.schemas.errors import JobError
from pairmill.schemas.select_steps import Dedup
from pairmill.schemas.subset import SelectJob, StepReport, Subset
from tests.embedded_dataset import write_embedded

Halves = npt.NDArray[np.float16]
Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "clip_b32" / "flickr8k500_pairs"
RNG = np.random.default_rng


def unit(values: npt.NDArray[Any]) -> Doubles:
    """Vectors of length 1, float64."""
    doubles = values.astype(np.float64)
    found: Doubles = doubles / np.maximum(np.sqrt((doubles * doubles).sum(axis=-1, keepdims=True)), 1e-30)
    return found


def mixture(rows: int, dim: int, seed: int = 0) -> Doubles:
    """Vectors around 50 topics, most of them far from each other."""
    rng = RNG(seed)
    topics = unit(rng.standard_normal((50, dim)))
    return unit(topics[rng.integers(0, 50, rows)] + 0.9 * unit(rng.standard_normal((rows, dim))))


def photographs(rows: int) -> Doubles:
    """Mixtures of two or three CLIP embeddings of 500 photographs, which form long chains of similar rows."""
    rng, real = RNG(1), np.load(REAL / "image_embeddings.npy").astype(np.float64)
    weights = rng.dirichlet([0.5] * 3, rows)
    return unit(np.einsum("rk,rkd->rd", weights, real[rng.integers(0, len(real), (rows, 3))]))


def with_copies(vectors: Doubles, lowest: float) -> Halves:
    """Replace the last fifth of the rows with near copies of other rows, with cosines from `lowest` to 1."""
    rng, copies = RNG(2), len(vectors) // 5
    originals = vectors[rng.integers(0, len(vectors) - copies, copies)]
    to = rng.standard_normal(originals.shape)
    to[::2] = vectors[rng.integers(0, len(vectors), copies)][::2]  # move half of them toward another row
    across = unit(to - (to * originals).sum(axis=1, keepdims=True) * originals)
    cosines = rng.uniform(lowest, 1, (copies, 1))
    return np.concatenate([vectors[:-copies], cosines * originals + np.sqrt(1 - cosines**2) * across]).astype(
        np.float16
    )


def near_pairs(vectors: Halves, threshold: float) -> npt.NDArray[np.int64]:
    """All pairs (i, j), i < j, with at least this cosine in every column, in float64; float16 [columns, rows, dim]."""
    units, found = unit(vectors), [np.zeros((0, 2), np.int64)]
    for start in range(0, units.shape[1], 1_000):
        block = slice(start, start + 1_000)
        rough = np.min([(one[block].astype("f4") @ one[start:].astype("f4").T) for one in units], axis=0)
        pairs = np.argwhere(np.triu(rough >= threshold - 1e-5, 1)) + start
        cosines = (units[:, pairs[:, 0]] * units[:, pairs[:, 1]]).sum(axis=2)
        found.append(pairs[(cosines >= threshold).all(axis=0)])
    return np.concatenate(found)


def check(goes: Mask, pairs: npt.NDArray[np.int64]) -> float:
    """Check that every dropped row resembles a row that stays. Of the rows with near rows, returns the share that was
    not missed: a row is missed if it stays although a better row near it stays too."""
    one, other = pairs.T
    justified = np.zeros(len(goes), np.bool_)
    justified[other[~goes[one]]] = justified[one[~goes[other]]] = True
    assert justified[goes].all()
    missed = other[~goes[one] & ~goes[other]]
    return 1 - len(np.unique(missed)) / len(np.unique(pairs))


def goes_by_brute_force(rows: int, pairs: npt.NDArray[np.int64]) -> Mask:
    """Visit the rows in order; each row that has not been dropped drops the later rows that resemble it."""
    goes = np.zeros(rows, np.bool_)
    starts = np.searchsorted(pairs[:, 0], np.arange(rows + 1))
    for row in np.unique(pairs[:, 0]):
        if not goes[row]:
            goes[pairs[starts[row] : starts[row + 1], 1]] = True
    return goes


def goes(dataset: Path, **dedup: Any) -> tuple[Mask, StepReport]:
    """(for each row, in the order of the numbers in the uids, whether the step drops it; the step's report)."""
    job = {"dataset": str(dataset), "name": "s", "steps": [{"dedup": {"by": "embedding", "model": "m"} | dedup}]}
    subset: Subset = select(SelectJob.model_validate(job), overwrite=True)
    store = Store(str(dataset))
    found = np.ones(subset.reports[0].rows_in, np.bool_)
    for table in read_rows(store, read_subset(store, "s")):
        found[[int(uid, 16) for uid in table["uid"].to_pylist()]] = False
    return found, subset.reports[-1]


def small_clusters(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Make clusters small, so that there are many, as in a large dataset."""
    monkeypatch.setattr(centers, "MIN_CLUSTER_ROWS", rows)


def test_dedup_of_8_000_rows_drops_the_same_rows_as_brute_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = with_copies(mixture(8_000, 128), 0.9)
    dataset = write_embedded(tmp_path / "d", vectors, shard_rows=1_639)
    small_clusters(monkeypatch, 400)
    found, report = goes(dataset)
    pairs = near_pairs(vectors[None], 0.95)
    assert check(found, pairs) >= 0.99
    expected = goes_by_brute_force(len(vectors), pairs)
    assert expected.sum() > 600
    assert (found & expected).sum() >= 0.99 * expected.sum()
    assert report.rows_in - report.rows_out == found.sum()
    assert report.not_compared == 0


@pytest.mark.parametrize("threshold", [0.9, 0.95])
def test_each_dropped_row_in_a_chain_of_photographs_resembles_a_kept_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float
) -> None:
    vectors = with_copies(photographs(2_000), threshold)
    dataset = write_embedded(tmp_path / "d", vectors)
    small_clusters(monkeypatch, 300)
    found, _ = goes(dataset, threshold=threshold)
    assert check(found, near_pairs(vectors[None], threshold)) >= 0.99


@pytest.mark.parametrize("seed", [0, 1])
def test_a_dedup_after_a_sample_still_forms_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    found: list[int] = []

    def find_centers(clusters: int, dim: int, *samples: Halves) -> npt.NDArray[np.float32]:
        found.append(len(made := centers.find_centers(clusters, dim, *samples)))
        return made

    monkeypatch.setattr(dedup_embedding, "find_centers", find_centers)
    small_clusters(monkeypatch, 50)
    dataset = write_embedded(tmp_path, mixture(2_000, 8).astype(np.float16))
    steps = [{"sample": {"fraction": 0.2, "seed": seed}}, {"dedup": {"by": "embedding", "model": "m"}}]
    select(SelectJob.model_validate({"dataset": str(dataset), "name": "s", "steps": steps}))
    assert 6 <= found[0] <= 12


def test_a_pair_is_dropped_if_its_picture_and_caption_both_resemble_those_of_another_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, text = with_copies(mixture(3_000, 32), 0.9), with_copies(mixture(3_000, 32, seed=9), 0.9)
    dataset = write_embedded(tmp_path / "d", image, text)
    small_clusters(monkeypatch, 300)
    for by, vectors in (("text_embedding", text[None]), ("pair", np.stack([image, text]))):
        found, _ = goes(dataset, by=by)
        pairs = near_pairs(vectors, 0.95)
        assert len(pairs) > 100
        assert check(found, pairs) >= 0.99


def test_the_result_does_not_depend_on_chunks_partitions_shards_or_row_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = with_copies(photographs(2_000)[:, :64], 0.9)
    small_clusters(monkeypatch, 200)
    settings = {"best": "similarity", "threshold": 0.9}
    expected, report = goes(write_embedded(tmp_path / "a", vectors), **settings)
    assert 500 < expected.sum() < 1_900
    other = write_embedded(tmp_path / "b", vectors, shard_rows=190, order=RNG(4).permutation(len(vectors)))
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 300)
    monkeypatch.setattr(dedup_embedding, "PARTITION_BYTES", 40_000)
    monkeypatch.setattr("pairmill.pipeline.select.tasks.LocalTasks.memory_bytes", 120_000)
    found, again = goes(other, **settings)
    assert (found == expected).all()
    assert [each.rows for each in again.largest_clusters] == [each.rows for each in report.largest_clusters]


def test_the_best_row_stays_or_the_first_if_there_is_no_score(tmp_path: Path) -> None:
    groups = np.repeat(mixture(200, 64), 5, axis=0)
    vectors = (groups + 0.01 * RNG(5).standard_normal(groups.shape)).astype(np.float16)
    vectors[1::5] = vectors[0::5]  # the second row of each group is identical to the first
    dataset = write_embedded(tmp_path / "d", vectors)
    found, report = goes(dataset)
    assert (np.flatnonzero(~found) == np.arange(0, 1_000, 5)).all()
    assert [each.rows for each in report.largest_clusters] == [5] * 5
    found, _ = goes(dataset, best="similarity")
    best = np.random.default_rng(3).permutation(1_000).reshape(200, 5).argmax(axis=1)
    assert (np.flatnonzero(~found) == np.arange(0, 1_000, 5) + best).all()


def test_rows_without_a_usable_embedding_stay_and_are_counted(tmp_path: Path) -> None:
    vectors = np.ones((60, 16), np.float16)
    vectors[10:20], vectors[20:30, 3], vectors[30:40, 5] = 0, np.nan, np.inf
    vectors[40:50, 0] = np.nan  # `write_embedded` writes null for these rows
    found, report = goes(write_embedded(tmp_path / "d", vectors))
    assert report.not_compared == 40
    assert (np.flatnonzero(~found) == [0, *range(10, 50)]).all()


def test_time_grows_linearly_for_nearly_equal_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = 0
    cosines = near._cosines

    def counted(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        nonlocal cells
        cells += one.shape[1] * other.shape[1]
        return cosines(one, other)

    monkeypatch.setattr(near, "_cosines", counted)
    vectors = (1 + 0.05 * RNG(6).standard_normal((1, 50_000, 16))).astype(np.float16)
    parents = near_rows(vectors, RNG(7).random(50_000) < 0.5, 0.95)
    assert (parents == STAYS).sum() < 3
    assert cells < 2 * 256 * 50_000


def test_two_rows_from_other_clusters_are_not_compared_with_each_other() -> None:
    """Rows from other clusters that are near this cluster are compared only with rows of this cluster."""
    parents = near_rows(np.ones((1, 600, 8), np.float16), np.arange(600) > 0, 0.95)
    assert (parents == [STAYS, *[0] * 599]).all()
    assert (near_rows(np.ones((1, 600, 8), np.float16), np.arange(600) < 599, 0.95) == [*[STAYS] * 599, 0]).all()


def test_the_threshold_is_exact() -> None:
    one, other = (RNG(8).standard_normal((64, 512)).astype(np.float16) for _ in range(2))
    other = (one + 0.3 * other).astype(np.float16)
    for row in range(64):
        pair = np.stack([one[row], other[row]])[None]
        a, b = pair[0].astype(np.float64)
        cosine = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
        assert near_rows(pair, np.zeros(2, np.bool_), cosine)[1] == 0
        assert near_rows(pair, np.zeros(2, np.bool_), np.nextafter(cosine, 2))[1] == STAYS


def test_dot_products_on_the_grid_are_exact_and_equal_samples_have_equal_centers() -> None:
    grid = on_grid(np.stack([mixture(500, 256), mixture(500, 256, seed=4)]).astype(np.float16))
    exact = grid.astype(np.float64) @ grid.astype(np.float64).T
    assert (grid @ grid.T == exact).all()
    assert np.abs(np.diag(exact) - 1).max() < 0.01
    sample = grid.astype(np.float16)
    assert (sample == grid).all()
    found = centers.find_centers(9, 512, sample)
    assert (found == centers.find_centers(9, 512, *np.split(sample[RNG(1).permutation(500)], 5))).all()
    assert len(found) >= 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "phash", "threshold": 0.9}, "threshold is for embeddings; add model: ALIAS"),
        ({"by": "sha256", "model": "m"}, "model works only with by: embedding, text_embedding, pair"),
        ({"by": "pair", "model": "m", "distance": 2}, "distance is for hashes; embeddings have a threshold"),
        ({"by": "pair", "model": "m", "threshold": 0.5}, "greater than or equal to 0.8"),
    ],
)
def test_incompatible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Dedup.model_validate(settings)


def test_the_stored_form_of_a_dedup_by_hash_is_unchanged() -> None:
    assert Dedup(by="phash", distance=2).model_dump() == {"by": "phash", "distance": 2, "best": None}
    assert Dedup(by="pair", model="m").model_dump(exclude_defaults=True) == {"by": "pair", "model": "m"}


def test_a_missing_model_is_named_together_with_the_existing_ones(tmp_path: Path) -> None:
    dataset = write_embedded(tmp_path / "d", mixture(20, 8).astype(np.float16))
    with pytest.raises(JobError, match="step 1, dedup: the dataset has no model 'x': its models are m"):
        goes(dataset, model="x")
    with pytest.raises(JobError, match="there is no column 'embedding'; to compare embeddings, add model: ALIAS"):
        goes(dataset, model=None)
