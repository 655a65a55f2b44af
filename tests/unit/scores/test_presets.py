"""Tests that presets load, name their source, and select the rows that they describe."""

import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.arguments import score_job, select_job
from pairmill.jobs.cli.main import app
from pairmill.jobs.cli.options import ScoreOptions, SelectOptions
from pairmill.jobs.preset_files import load_preset, preset_names, steps_for
from pairmill.pipeline.columns.column_files import write_columns
from pairmill.pipeline.columns.score_card import ScoreCard, ScoreColumn, State, write_state
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifest
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.kinds import kind_of
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.scores import NegClipScore, NormSimScore, ScoreConfig, ScoreKinds
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.select_steps import SelectStep
from tests.unit.scores.embedded import B32, column, unit_vectors, write_embedded

MISSING = {"norm_sim": {"target": "out"}, "head": {"weights": "head.safetensors"}}
"""Settings that have no default, so users must provide them."""


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_a_source_and_valid_steps_and_scores(name: str) -> None:
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


def test_a_preset_names_missing_scores_and_selects_once_they_exist(tmp_path: Path) -> None:
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


L14 = ScoreContract("l14", "ViT-L-14", "openai", "1" * 64, {}, "float32", 77)


def commit(store: Store, name: str, score: dict[str, object]) -> None:
    """Add a score with random values. Used for kinds of scores that need pictures."""
    config = ScoreConfig.model_validate(score)
    columns = kind_of(name, config).schema
    card = ScoreCard(
        name=name,
        score=config,
        columns=[ScoreColumn(name=each.name, type=str(each.type)) for each in columns],
        state=write_state(store, name, State()),
        versions={},
    )
    store.create(f"columns/{name}/score.json", card.model_dump_json(exclude_none=True).encode())
    for shard, generation in Snapshot.of(store).generations:
        manifest = read_manifest(store, manifest_name(shard, generation))
        table = Snapshot.of(store).chunk.read(Snapshot.of(store).chunk.shards[shard], frozenset({"row_id"}))
        values = pa.array(np.random.default_rng(shard).random(table.num_rows).astype(np.float32))
        for field in columns:
            is_number = pa.types.is_floating(field.type)
            table = table.append_column(field, values if is_number else pa.nulls(table.num_rows, field.type))
        write_columns(store, name, table, manifest, {"score": name}, card.fingerprint)


def test_a_threshold_applies_only_to_the_model_it_was_calibrated_on(tmp_path: Path) -> None:
    stores = {
        model.alias: write_embedded(tmp_path / model.alias, unit_vectors(1, 50), unit_vectors(2, 50), contract=model)
        for model in (B32, L14)
    }
    for preset, alias, other in (("t-mars", "b32", "l14"), ("text-to-image", "l14", "b32")):
        model = f"{load_preset(preset).requires_model.name}:openai"
        with pytest.raises(JobError, match=rf"calibrated on {model}, which \S+ lacks; add it first:\n  pairmill embed"):
            steps_for(preset, stores[other])
        with pytest.raises(JobError, match="selects by scores that"):
            steps_for(preset, stores[alias])
    commit(stores["b32"], "words", {"text": {"mask": {"model": "b32"}}})
    assert steps_for("t-mars", stores["b32"]) == [{"where": "words_similarity >= 0.281"}]
    commit(stores["l14"], "words", {"text": {}})
    commit(stores["l14"], "aesthetic", {"head": {"weights": "/head.pth", "model": "l14"}})
    assert steps_for("text-to-image", stores["l14"])[-1] == {"top": {"by": "similarity_l14", "fraction": 0.8}}
    subset = pairmill.select(tmp_path / "l14", "none", steps="where: words_share <= 0.1", dry_run=True)
    values = column(tmp_path / "l14", "words_share")
    assert subset.rows_out == (values <= 0.1).sum()


def test_a_preset_prefers_the_exact_name_of_its_model_to_the_other_name() -> None:
    wanted = load_preset("t-mars").requires_model
    assert wanted is not None
    other, exact, unrelated = (
        ModelConfig(name=name, pretrained="openai") for name in ("ViT-B-32-quickgelu", "ViT-B-32", "ViT-L-14")
    )
    assert wanted.among([other, unrelated, exact]) == [exact]
    assert wanted.among([other, unrelated]) == [other]
    assert wanted.among([unrelated, ModelConfig(name="ViT-B-32", pretrained="laion2b_e16")]) == []


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_with_a_model_specific_threshold_names_the_model(name: str) -> None:
    """A threshold for a similarity or a head's score is meaningless for a different model."""
    preset = load_preset(name)
    text = f"{preset.steps} {preset.rules}"
    by_model = [each for each, score in preset.scores.items() if {"head", "text"} & score.keys()]
    is_absolute = "min_similarity" in text or any(f"{each}" in text and ">=" in text for each in by_model)
    assert is_absolute == (preset.requires_model is not None)


@pytest.mark.parametrize(
    ("preset", "name", "score", "message"),
    [
        (
            "negcliploss-normsim",
            "neg_clip",
            {"mix": "0 - similarity"},
            "  kind: mix in the dataset, neg_clip in the preset",
        ),
        (
            "negcliploss-normsim",
            "neg_clip",
            {"neg_clip": {"temperature": 0.07, "batch": 40}},
            "  neg_clip.temperature: 0",
        ),
        (
            "negcliploss-normsim",
            "norm_sim",
            {"norm_sim": {"target": "/t.npy", "norm": "2"}},
            "  norm_sim.norm: '2' in the dataset",
        ),
        ("t-mars", "words", {"text": {}}, "  text.mask: None in the dataset, {'model': 'b32'} in the preset"),
        (
            "t-mars",
            "words",
            {"text": {"mask": {"model": "l14"}}},
            "  text.mask.model: 'l14' in the dataset, 'b32' in the preset",
        ),
    ],
)
def test_a_different_score_of_the_same_name_is_refused_and_the_differences_are_listed(
    tmp_path: Path, preset: str, name: str, score: dict[str, object], message: str
) -> None:
    store = write_embedded(tmp_path, unit_vectors(1, 50), unit_vectors(2, 50))
    commit(store, name, score)
    for other, settings in (("norm_sim", {"norm_sim": "/t.npy"}), ("neg_clip", {"neg_clip": {"repeats": 10}})):
        if preset != "t-mars" and other != name:
            commit(store, other, settings)
    with pytest.raises(JobError, match="is not the one that the preset") as caught:
        pairmill.select(tmp_path, "best", preset=preset)
    assert message in str(caught.value)


def test_the_commands_that_a_preset_advises_work(tmp_path: Path) -> None:
    store = write_embedded(tmp_path / "out", unit_vectors(1, 100), unit_vectors(2, 100), planned_rows=150)
    given = {"norm_sim.target=TARGET": str(tmp_path / "targets.npy"), "head.weights=WEIGHTS": str(tmp_path / "h.pth")}
    np.save(tmp_path / "targets.npy", unit_vectors(3, 10))
    torch.save({"weight": torch.ones(1, 16), "bias": torch.zeros(1)}, tmp_path / "h.pth")
    with pytest.raises(JobError) as caught:
        steps_for("negcliploss-normsim", store)
    commands = str(caught.value).splitlines()[1:]
    assert len(commands) == 2 and commands[1].endswith("--set norm_sim.target=TARGET")
    for command in commands:
        arguments = [*shlex.split(command)[1:], "--set", "partial=true"]
        for placeholder, value in given.items():
            arguments = [each.replace(placeholder, f"{placeholder.split('=')[0]}={value}") for each in arguments]
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert len(steps_for("negcliploss-normsim", store)) == 2
    write_embedded(tmp_path / "out", unit_vectors(1, 150), unit_vectors(2, 150))
    with pytest.raises(JobError) as caught:
        steps_for("negcliploss-normsim", store)
    for command in str(caught.value).splitlines()[1:]:
        assert "--preset" not in command and CliRunner().invoke(app, shlex.split(command)[1:]).exit_code == 0
    assert len(steps_for("negcliploss-normsim", store)) == 2
    with pytest.raises(JobError, match=r"aesthetic --preset text-to-image --set head\.weights=WEIGHTS\n"):
        steps_for(
            "text-to-image", write_embedded(tmp_path / "l14", unit_vectors(1, 50), unit_vectors(2, 50), contract=L14)
        )


def test_the_file_overrides_the_preset_and_flags_override_both(tmp_path: Path) -> None:
    store = write_embedded(tmp_path / "out", unit_vectors(1, 50), unit_vectors(2, 50))
    (tmp_path / "score.yaml").write_text("name: neg_clip\nneg_clip: {batch: 64}\n")

    def scored(**options: object) -> NegClipScore | None:
        return score_job(ScoreOptions(output=store.root, preset="negcliploss-normsim", **options)).neg_clip

    file = {"job_file": str(tmp_path / "score.yaml")}
    expected = NegClipScore(temperature=0.01, batch=64, repeats=10)
    assert scored(**file) == scored(**file, name="neg_clip") == expected
    assert scored(name="neg_clip", given="neg_clip: {batch: 64}") == expected
    assert scored(**file, settings=["neg_clip.batch=32"]) == expected.model_copy(update={"batch": 32})
    with pytest.raises(JobError, match="there is no preset 'nonsense'"):
        score_job(ScoreOptions(output=store.root, preset="nonsense", **file))
    with pytest.raises(
        JobError, match="say which score of the preset 'negcliploss-normsim' to add: neg_clip, norm_sim"
    ):
        scored()
    targets = score_job(
        ScoreOptions(output="out", name="norm_sim", preset="negcliploss-normsim", given="norm_sim: targets")
    )
    assert targets.norm_sim == NormSimScore(target="targets", norm="inf")

    (tmp_path / "steps.yaml").write_text("steps:\n  - where: similarity > 0.9\n")
    options = SelectOptions(dataset=store.root, name="x", preset="clip-score-30", job_file=str(tmp_path / "steps.yaml"))
    both = [{"top": {"by": "similarity", "fraction": 0.3}}, {"where": "similarity > 0.9"}]
    assert [step.model_dump(exclude_unset=True) for step in select_job(options).steps] == both
    flags = dataclasses.replace(options, steps=["where: kept"])
    assert [step.model_dump(exclude_unset=True) for step in select_job(flags).steps] == [both[0], {"where": "kept"}]


def test_errors_about_unknown_presets_and_scores_list_the_existing_ones(tmp_path: Path) -> None:
    write_embedded(tmp_path, unit_vectors(1, 50), unit_vectors(2, 50))
    with pytest.raises(JobError, match="there is no preset 'best'; choose one of: clip-score-30, "):
        pairmill.select(tmp_path, "best", preset="best")
    with pytest.raises(JobError, match="has no score 'aesthetic'; it has: neg_clip, norm_sim"):
        pairmill.score(tmp_path, "aesthetic", preset="negcliploss-normsim")
    with pytest.raises(JobError, match="has no steps for select, only rules for build"):
        pairmill.select(tmp_path, "best", preset="laion2b")


def test_the_balanced_preset_reads_the_list_in_the_current_folder(
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
