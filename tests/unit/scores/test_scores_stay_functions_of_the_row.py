"""Tests that scores depend only on the row, their settings and their state, and never hide another column."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import logsumexp

from pairmill.jobs.add_model import _pipeline
from pairmill.pipeline.check.rescore_columns import differences
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.columns.score_card import State, read_score_card, read_state
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.reader.dataset import Dataset
from pairmill.pipeline.score import draw
from pairmill.pipeline.score.classes import Classes
from pairmill.pipeline.score.embeddings import float32_blocks
from pairmill.pipeline.score.kind import ScoreError
from pairmill.pipeline.select.keys import uid_hashes
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig
from tests.unit.scores.embedded import add, column, stored, unit_vectors, write_embedded

IMAGES, TEXTS = unit_vectors(1, 2_000), unit_vectors(2, 2_000)


@pytest.fixture
def head(tmp_path: Path) -> str:
    path = tmp_path / "head.safetensors"
    save_file({"weight": torch.from_numpy(unit_vectors(3, 1)), "bias": torch.zeros(1)}, path)
    return str(path)


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """The first half of a dataset; `grow` adds the rest."""
    write_embedded(tmp_path / "out", IMAGES[:100], TEXTS[:100], planned_rows=200)
    return tmp_path / "out"


def grow(folder: Path) -> None:
    write_embedded(folder, IMAGES[:200], TEXTS[:200])


def test_a_batch_is_complete_even_if_most_rows_have_no_embedding(tmp_path: Path) -> None:
    valid = list(range(0, 2_000, 13))
    write_embedded(tmp_path, IMAGES, TEXTS, 500, missing=sorted(set(range(2_000)) - set(valid)))
    add(tmp_path, "neg", neg_clip={"batch": 100, "repeats": 1, "temperature": 0.07})
    uids = Dataset.of(Store(str(tmp_path))).table(["uid"])["uid"]
    order = [int(row) for row in np.argsort(uid_hashes(uids, 4, 0)) if row in valid]
    image, text, found = stored(IMAGES), stored(TEXTS), column(tmp_path, "neg")
    for row in valid:
        batch = order[:100] if row in order[:100] else [*order[:99], row]
        loss = logsumexp(text[batch] @ image[row] / 0.07) + logsumexp(image[batch] @ text[row] / 0.07)
        assert found[row] == pytest.approx(image[row] @ text[row] - 0.035 * loss, abs=1e-5)
    add(tmp_path, "dense", density={"sample": len(valid), "neighbors": len(valid) - 1, "clusters": 2})
    assert np.isfinite(column(tmp_path, "dense")).sum() == len(valid)


def test_a_sample_too_large_for_the_memory_of_workers_is_refused(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "MAX_BYTES", 10_000)
    np.save(tmp_path / "targets.npy", unit_vectors(1, 400))
    for kind in (
        {"neg_clip": {"batch": 100, "repeats": 2}},
        {"neg_clip": {"batch": 50, "repeats": 7}},
        {"norm_sim": str(tmp_path / "targets.npy")},
    ):
        with pytest.raises(ScoreError, match=r"embeddings of 16 dimensions takes .* GB in every worker"):
            add(grown, "large", partial=True, **kind)


def test_blocks_are_smaller_if_each_row_is_compared_with_millions_of_rows() -> None:
    vectors = unit_vectors(1, 2_000).astype(np.float16)
    for compared_with in (1, 10_000, 1 << 20, 10_000_000):
        blocks = [rows for rows, _ in float32_blocks(vectors, compared_with=compared_with)]
        assert [row for rows in blocks for row in range(rows.start, rows.stop)] == list(range(2_000))
        assert max(rows.stop - rows.start for rows in blocks) * compared_with <= max(1 << 24, compared_with)


def test_a_score_is_not_continued_with_a_different_source_under_the_same_name(grown: Path, head: str) -> None:
    add(grown, "neg", neg_clip={"batch": 40}, partial=True)
    add(grown, "mixed", mix="neg + 1")
    state = read_state(Store(str(grown)), read_score_card(Store(str(grown)), "mixed"))
    assert state.values["sources"] == {"neg": read_score_card(Store(str(grown)), "neg").fingerprint}
    shutil.move(grown / "columns/neg", grown.parent / "elsewhere")
    add(grown, "neg", head=head)
    grow(grown)
    add(grown, "neg")
    for kind in ({}, {"mix": "neg + 1"}):
        with pytest.raises(ScoreError, match="'mixed' was made from a different 'neg'; add it again under"):
            add(grown, "mixed", **kind)
    assert add(grown, "again", mix="neg + 1").shards_scored == 4


def test_the_column_names_of_an_incomplete_score_count_as_taken(grown: Path, head: str) -> None:
    add(grown, "dense", density={"sample": 30, "neighbors": 3, "clusters": 4}, partial=True)
    grow(grown)
    with pytest.raises(ScoreError, match="already has a column 'dense_cluster'"):
        add(grown, "dense_cluster", head=head)


@pytest.mark.parametrize("name", ["image", "is_pair", "similarity_l14", "image_embedding_x", "dataset", "weight"])
def test_names_of_pairmills_own_columns_are_refused(grown: Path, head: str, name: str) -> None:
    with pytest.raises(ScoreError, match="pairmill has its own column"):
        add(grown, name, head=head)
    assert not (grown / "columns").exists()


def test_a_model_with_the_alias_of_a_score_is_refused(grown: Path, head: str) -> None:
    add(grown, "tiny", head=head)
    store = Store(str(grown))
    plan = load_plan(store)
    record = replace(plan.record, job=plan.job.model_copy(update={"images": ImagesConfig()}))
    with_pictures = replace(plan, record=record)
    with pytest.raises(JobError, match="has a score named 'tiny'; choose another alias"):
        _pipeline(store, with_pictures, {"name": "tiny"}, {"run": {"device": "cpu"}})
    assert not (grown / "columns/tiny/model.json").exists()


def test_a_copied_folder_of_a_score_is_named(grown: Path, head: str) -> None:
    add(grown, "aesthetic", head=head)
    shutil.copytree(grown / "columns/aesthetic", grown / "columns/old")
    (problem,) = verify(Store(str(grown))).problems
    assert "columns/old/score.json is the card of the score 'aesthetic': its folder was copied" in problem


def test_z_scores_of_tiny_numbers_are_exact(grown: Path) -> None:
    add(grown, "tiny", mix="similarity * 0.0000000001")
    add(grown, "z", mix="zscore(tiny)", partial=True)
    add(grown, "same", mix="zscore(0 * tiny)", partial=True)
    values = column(grown, "similarity")
    assert np.allclose(column(grown, "z"), (values - values.mean()) / values.std(), atol=1e-4)
    assert (column(grown, "same") == 0).all()
    with pytest.raises(ScoreError, match="use rank"):
        add(grown, "huge", mix="zscore(similarity * 1e300)", partial=True)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_a_mix_can_have_the_line_endings_of_any_system(grown: Path, end: str) -> None:
    add(grown, "lines", mix=f"(rank(similarity{end}){end} + 2 * zscore(similarity){end} + 1)", partial=True)
    add(grown, "plain", mix="rank(similarity) + 2 * zscore(similarity) + 1", partial=True)
    assert np.array_equal(column(grown, "lines"), column(grown, "plain"))


def test_verify_does_not_mistake_rounding_in_a_different_block_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = unit_vectors(1, 640, 512)
    write_embedded(tmp_path / "out", images, images, 32)
    (tmp_path / "names.txt").write_text("\n".join(map(str, range(300))))
    values = {"names": list(map(str, range(300))), "logit_scale": 100.0, "logit_bias": None}
    classes = unit_vectors(2, 300, 512)
    monkeypatch.setattr(Classes, "prepare", lambda *_: State({"classes": classes}, values))
    add(tmp_path / "out", "kind", classes={"names": str(tmp_path / "names.txt"), "top": 20})
    report = verify(Store(str(tmp_path / "out")), rescore=20)  # rescores one row of each shard
    assert (report.problems, report.scores_recomputed) == ([], 20)


def test_only_classes_whose_cosines_almost_tie_can_change_places_and_nulls_cannot_change() -> None:
    classes = np.array([[1, 0], [0.99999999, 1e-4], [0, 1]], np.float32)
    values = {"names": ["a", "b", "c"], "logit_scale": 100.0, "logit_bias": -10.0}
    kind = Classes("c", ScoreConfig.model_validate({"classes": {"model": "m", "top": 3}}))
    vectors = [[1, 0], [0, 1], [0.5, 0.5], None]
    rows = pa.table({"image_embedding_m": pa.array(vectors, pa.list_(pa.float16(), 2))})
    found = kind.open(State({"classes": classes}, values), RunConfig()).certain(rows)
    assert found["c"].tolist() == found["c_index"].tolist() == [False, True, True, True]
    assert found["c_top"].tolist() == [False, True, False, True]
    lists = pa.chunked_array([[[0.5, 0.2], [0.5, 0.2], None, [0.5]]])
    others = pa.chunked_array([[[0.50001, 0.2], [0.5, 0.3], [0.5], [0.5, 0.2]]])
    assert differences(lists, others) == [1, 2, 3]
