"""Presets load, name their source, and select what they say."""

from pathlib import Path

import numpy as np
import pytest

import pairmill
from pairmill.jobs.preset_files import load_preset, preset_names, steps_for
from pairmill.pipeline.common.storage import Store
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.scores import ScoreKinds
from pairmill.schemas.select_steps import SelectStep
from tests.unit.scores.embedded import column, unit_vectors, write_embedded

MISSING = {"norm_sim": {"target": "out"}, "head": {"weights": "head.safetensors"}}
"""What users must set."""


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_a_source_and_steps_and_scores_that_are_valid(name: str) -> None:
    preset = load_preset(name)
    assert preset.description and preset.source and preset.calibrated_on
    for score in preset.scores.values():
        ((kind, settings),) = score.items()
        assert isinstance(settings, dict)
        ScoreKinds.model_validate({kind: {**MISSING.get(kind, {}), **settings}})
    for step in preset.steps:
        SelectStep.model_validate(step)


def test_the_clip_score_preset_keeps_the_best_30_percent(tmp_path: Path) -> None:
    write_embedded(tmp_path, unit_vectors(1, 200), unit_vectors(2, 200))
    subset = pairmill.select(tmp_path, "best", preset="clip-score-30")
    kept = pairmill.open(tmp_path).subset("best").table(["similarity"])["similarity"].to_numpy()
    assert subset.rows_out == 60
    assert np.array_equal(np.sort(kept), np.sort(column(tmp_path, "similarity"))[-60:].astype(np.float32))


def test_a_preset_names_the_scores_that_are_missing_and_selects_once_they_are_there(tmp_path: Path) -> None:
    write_embedded(tmp_path / "out", unit_vectors(1, 200), unit_vectors(2, 200))
    with pytest.raises(
        JobError, match=r"add them first:\n  pairmill score \S+ neg_clip --preset negcliploss-normsim\n"
    ):
        pairmill.select(tmp_path / "out", "best", preset="negcliploss-normsim")
    np.save(tmp_path / "targets.npy", unit_vectors(3, 10))
    preset = "negcliploss-normsim"
    pairmill.score(tmp_path / "out", "neg_clip", preset=preset, settings={"neg_clip.repeats": 1})
    with pytest.raises(JobError, match=r"norm_sim\.target: is required"):
        pairmill.score(tmp_path / "out", "norm_sim", preset=preset)
    target = {"norm_sim.target": str(tmp_path / "targets.npy")}
    pairmill.score(tmp_path / "out", "norm_sim", preset=preset, settings=target)
    subset = pairmill.select(tmp_path / "out", "best", steps="where: width is None", preset=preset)
    assert [report.rows_out for report in subset.reports[2:]] == [60, 40, 40]


def test_a_threshold_is_that_of_the_model_it_was_calibrated_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = load_preset("clip-score-30").model_copy(
        update={"requires_model": load_preset("laion2b").requires_model, "steps": [{"where": "{similarity} >= 0.28"}]}
    )
    monkeypatch.setattr("pairmill.jobs.preset_files.load_preset", lambda name: preset)
    write_embedded(tmp_path / "b32", unit_vectors(1, 50), unit_vectors(2, 50))
    assert steps_for("it", Store(str(tmp_path / "b32"))) == [{"where": "similarity_b32 >= 0.28"}]
    other = ScoreContract("l14", "ViT-L-14", "openai", "0" * 64, {}, "float32", 77)
    write_embedded(tmp_path / "l14", unit_vectors(1, 50), unit_vectors(2, 50), contract=other)
    with pytest.raises(JobError, match=r"calibrated on ViT-B-32:openai, which \S+ lacks; add it first:"):
        steps_for("it", Store(str(tmp_path / "l14")))


def test_unknown_presets_and_scores_name_what_there_is(tmp_path: Path) -> None:
    write_embedded(tmp_path, unit_vectors(1, 50), unit_vectors(2, 50))
    with pytest.raises(JobError, match="there is no preset 'best'; there are: clip-score-30, "):
        pairmill.select(tmp_path, "best", preset="best")
    with pytest.raises(JobError, match="has no score 'aesthetic'; it has: neg_clip, norm_sim"):
        pairmill.score(tmp_path, "aesthetic", preset="negcliploss-normsim")
    with pytest.raises(JobError, match="has no steps for select, only rules for build"):
        pairmill.select(tmp_path, "best", preset="laion2b")


def test_the_balanced_preset_takes_the_list_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = ["a cat" if row % 2 else f"dog {row}" for row in range(400)]
    write_embedded(tmp_path / "out", unit_vectors(1, 400), unit_vectors(2, 400), captions=captions)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match=r"step 2, balance: \S+/entries\.txt cannot be read: No such file"):
        pairmill.select("out", "best", preset="pretrain-balanced")
    (tmp_path / "entries.txt").write_text("cat\n2\n4\n")
    (balance,) = (step for step in load_preset("pretrain-balanced").steps if "balance" in step)
    subset = pairmill.select("out", "best", steps=balance)  # all rows have the same sha256
    kept = pairmill.open("out").subset("best").table(["caption"])["caption"].to_pylist()
    assert {"dog 2", "dog 4"} < set(kept) <= {"a cat", "dog 2", "dog 4"}
    assert subset.rows_out == pytest.approx(100, abs=45)
