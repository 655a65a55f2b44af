"""Tests scores as a job: names, resuming, growth, damage, and the effects on other commands."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import typer.main
from safetensors.torch import save_file
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.api.keywords import parse_score
from pairmill.jobs.cli.command_line import parse_command
from pairmill.jobs.cli.main import app
from pairmill.jobs.cluster.job_bundle import bundled
from pairmill.pipeline.check.rescore_columns import differences
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import DamagedManifestError
from pairmill.pipeline.score import prepare, score_shard
from pairmill.pipeline.score.head import Head
from pairmill.pipeline.score.kind import ScoreError
from tests.records import change
from tests.unit.scores.embedded import add, column, supersede, unit_vectors, write_embedded

IMAGES, TEXTS = unit_vectors(1, 200), unit_vectors(2, 200)


@pytest.fixture
def head(tmp_path: Path) -> str:
    path = tmp_path / "head.safetensors"
    save_file({"weight": torch.from_numpy(unit_vectors(3, 1)), "bias": torch.zeros(1)}, path)
    return str(path)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_embedded(folder, IMAGES, TEXTS)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test can change."""
    return Path(shutil.copytree(original, tmp_path / "out"))


def test_after_growth_only_new_shards_are_scored_and_the_result_equals_a_score_made_in_one_run(
    tmp_path: Path, head: str
) -> None:
    kinds: dict[str, dict[str, object]] = {
        "head": {"head": head},
        "neg": {"neg_clip": {"batch": 40, "repeats": 2}},
        "dense": {"density": {"sample": 30, "neighbors": 3, "clusters": 4}},
        "mixed": {"mix": "rank(similarity)"},
    }
    grown = tmp_path / "grown"
    write_embedded(grown, IMAGES[:100], TEXTS[:100], planned_rows=200)
    for name, kind in kinds.items():
        result = add(grown, name, **kind, partial=True)
        assert (result.shards_scored, result.unfinished_shards) == (2, 2)
        prepared = [] if name == "head" else ["was prepared from 100 rows, with 2 planned shards missing"]
        assert result.notes == prepared
    before = {name: column(grown, name) for name in kinds}
    write_embedded(grown, IMAGES, TEXTS)
    for name in kinds:
        result = add(grown, name)  # if no settings are given, the score's card provides them
        assert (result.shards_scored, result.rows_scored, result.shards_missing) == (2, 100, [])
        assert result.unfinished_shards == 0
        assert np.array_equal(column(grown, name)[:100], before[name])
        assert [note[:72] for note in result.notes[1:]] == [
            "compares all rows with those that the dataset had when the score was pre" for _ in range(name != "head")
        ]
    assert verify(Store(str(grown))).problems == []
    whole = tmp_path / "whole"
    write_embedded(whole, IMAGES, TEXTS)
    add(whole, "head", head=head)
    assert np.array_equal(column(grown, "head"), column(whole, "head"))


@pytest.mark.parametrize(
    "kind",
    [
        {"neg_clip": {"batch": 40}},
        {"density": {"neighbors": 3}},
        {"mix": "rank(similarity)"},
        {"captions": "bits_per_character"},
    ],
)
def test_scores_that_compare_with_the_whole_dataset_need_a_finished_dataset(
    tmp_path: Path, kind: dict[str, object]
) -> None:
    write_embedded(tmp_path, IMAGES[:50], TEXTS[:50], planned_rows=100)
    with pytest.raises(ScoreError, match=r"is not finished: 1 planned shard missing\. .* --set partial=true"):
        add(tmp_path, "relative", **kind)
    assert not (tmp_path / "columns").exists()
    assert add(tmp_path, "plain", mix="similarity + 1").notes == []  # this score depends on the row alone
    write_embedded(tmp_path, IMAGES[:100], TEXTS[:100])
    assert add(tmp_path, "relative", **kind).notes == []


@pytest.mark.parametrize("moment", ["before the state", "before the card"])
def test_only_one_of_two_scores_with_the_same_column_is_added(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Another run adds `dense_cluster`, a column of `dense`, while `dense` is being prepared."""
    honest, create = prepare.write_state, Store.create

    def interrupted(store: Store, name: str, data: bytes | State) -> object:
        if "dense" in name and name.endswith(("dense", "score.json")):
            monkeypatch.undo()
            add(folder, "dense_cluster", mix="100 * similarity")
        return honest(store, name, data) if isinstance(data, State) else create(store, name, data)

    if moment == "before the state":
        monkeypatch.setattr(prepare, "write_state", interrupted)
    else:
        monkeypatch.setattr(Store, "create", interrupted)
    with pytest.raises(ScoreError, match="already has a column 'dense_cluster'"):
        add(folder, "dense", density={"sample": 30, "neighbors": 3, "clusters": 4})
    assert np.allclose(column(folder, "dense_cluster"), 100 * column(folder, "similarity"))
    assert [path.name for path in (folder / "columns/dense").rglob("*") if path.is_file()] == []


def test_a_file_that_changes_while_it_is_read_is_refused(
    folder: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Head.prepare

    def prepare_and_change(self: Head, *rest: object) -> State:
        state = honest(self, *rest)
        save_file({"weight": torch.zeros(1, 16), "bias": torch.ones(1)}, head)
        return state

    monkeypatch.setattr(Head, "prepare", prepare_and_change)
    with pytest.raises(ScoreError, match=r"head\.safetensors changed while it was being read"):
        add(folder, "aesthetic", head=head)
    assert not (folder / "columns").exists()


def test_until_new_shards_are_scored_the_column_is_missing_and_the_error_says_what_to_run(
    tmp_path: Path, head: str
) -> None:
    write_embedded(tmp_path, IMAGES[:100], TEXTS[:100], planned_rows=200)
    add(tmp_path, "aesthetic", head=head)
    assert "added: aesthetic\n" in CliRunner().invoke(app, ["status", str(tmp_path)]).output
    write_embedded(tmp_path, IMAGES, TEXTS)
    shown = CliRunner().invoke(app, ["status", str(tmp_path)]).output
    assert f"added: aesthetic, which some shards lack; run: pairmill score {tmp_path} aesthetic\n" in shown
    with pytest.raises(pairmill.JobError, match="some shards lack the score 'aesthetic'; run: pairmill score"):
        pairmill.select(tmp_path, "best", steps="where: aesthetic > 0")


def test_a_score_is_a_column_like_any_other(folder: Path, head: str) -> None:
    add(folder, "aesthetic", head=head)
    scores = column(folder, "aesthetic")
    subset = pairmill.select(folder, "best", steps=["where: aesthetic > 0", "top: {by: aesthetic, count: 20}"])
    assert subset.rows_out == 20
    chosen = pairmill.open(folder).subset("best").table(["aesthetic"])["aesthetic"].to_numpy()
    assert np.array_equal(np.sort(chosen), np.sort(scores)[-20:].astype(np.float32))
    add(folder, "mixed", mix="rank(aesthetic) + rank(similarity)")
    assert np.isfinite(column(folder, "mixed")).all()


def test_a_different_score_under_the_same_name_is_refused_and_the_differences_are_listed(
    folder: Path, head: str
) -> None:
    add(folder, "neg", neg_clip={"batch": 40})
    with pytest.raises(
        ScoreError, match=r"a different score 'neg'; choose another name, or move .*\n  batch: 40 in the dataset, 50"
    ):
        add(folder, "neg", neg_clip={"batch": 50})
    with pytest.raises(ScoreError, match="neg_clip in the dataset, head now"):
        add(folder, "neg", head=head)
    add(folder, "aesthetic", head=head)
    save_file({"weight": torch.zeros(1, 16), "bias": torch.zeros(1)}, head)
    with pytest.raises(ScoreError, match=r"head\.safetensors has changed since the score 'aesthetic' was added"):
        add(folder, "aesthetic", head=head)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("similarity", "already has a column 'similarity'"),
        ("kept", "already has a column"),
        ("b32", "no score 'b32'"),
        ("best", "caption=best has a meaning of its own"),
    ],
)
def test_a_name_that_is_taken_or_unknown_is_refused_before_anything_is_written(
    folder: Path, head: str, name: str, message: str
) -> None:
    settings: dict[str, dict[str, object]] = {"b32": {}, "best": {"caption_model": {"model": "coca_ViT-B-32"}}}
    with pytest.raises(ScoreError, match=message):
        add(folder, name, **settings.get(name, {"head": head}))
    assert not (folder / "columns").exists()


def test_verify_names_the_source_of_a_score_if_it_is_gone_or_has_been_replaced(folder: Path, head: str) -> None:
    add(folder, "aesthetic", head=head)
    add(folder, "mixed", mix="rank(aesthetic)")
    add(folder, "other", captions=["words"])
    shutil.move(folder / "columns/aesthetic", folder.parent / "aesthetic")
    (problem,) = pairmill.verify(folder, rescore=8).problems
    assert "the score 'mixed' is made from aesthetic: " in problem
    assert "add it again, or move columns/mixed elsewhere" in problem
    save_file({"weight": torch.ones(1, 16), "bias": torch.zeros(1)}, head)
    add(folder, "aesthetic", head=head)
    (problem,) = pairmill.verify(folder, rescore=8).problems
    assert "the score 'mixed' was made from a different 'aesthetic'" in problem


def test_a_kind_cannot_be_given_by_both_the_job_file_and_the_flag(folder: Path, head: str) -> None:
    job = folder.parent / "score.yaml"
    job.write_text(f"head: {{weights: {head}, normalise: false}}\n")
    with pytest.raises(pairmill.JobError, match=r"score\.yaml and --score both set head"):
        pairmill.score(folder, "aesthetic", f"head: {head}", job_file=job)
    with pytest.raises(pairmill.JobError, match="did you mean 'normalize'"):
        pairmill.score(folder, "aesthetic", job_file=job)
    with pytest.raises(pairmill.JobError, match="name the score"):
        pairmill.score(folder, score=f"head: {head}")


def test_an_option_with_one_value_cannot_be_given_twice(folder: Path) -> None:
    twice = ["--score", "density: {}", "--score", "captions: [words]"]
    result = CliRunner().invoke(app, ["score", str(folder), "words", *twice])
    assert result.exit_code == 2
    assert "--score is given twice, but takes one value" in result.output
    assert not (folder / "columns").exists()


def test_a_mix_with_missing_columns_names_all_of_them_with_the_commands_that_add_them(folder: Path) -> None:
    with pytest.raises(ScoreError) as raised:
        add(folder, "mixed", mix="rank(neg) + aesthetic")
    assert f"pairmill score {folder} aesthetic --score" in str(raised.value)
    assert f"pairmill score {folder} neg --score" in str(raised.value)


@pytest.mark.parametrize("norm", ["max", "inf"])
def test_pictures_cannot_be_their_own_targets(folder: Path, norm: str) -> None:
    with pytest.raises(ScoreError, match="the pictures of the dataset itself"):
        add(folder, "sim", norm_sim={"target": str(folder), "norm": norm})
    add(folder, "sim", norm_sim={"target": str(folder), "norm": "2"})


@pytest.mark.parametrize("name", ["Aesthetic", "../x", "a b", "", "x" * 41, "\u00e9"])
def test_names_that_are_not_identifiers_are_refused(folder: Path, head: str, name: str) -> None:
    with pytest.raises(pairmill.JobError, match="name"):
        pairmill.score(folder, name, {"head": head})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("density", "write 'density: {}' for all defaults"),
        ("neg_clip: ", "write 'neg_clip: {}' for all defaults"),
        ("densty", "write it as 'head: weights.safetensors'"),
    ],
)
def test_a_kind_without_settings_says_how_to_write_it(text: str, message: str) -> None:
    with pytest.raises(pairmill.JobError, match=re.escape(message)):
        parse_score(text)


@pytest.mark.parametrize(
    ("old", "new", "differ"),
    [
        ([[0.5, 0.25], None, [0.5]], [[0.500001, 0.25], None, [0.5]], []),
        ([[0.5], [0.5], [0.5], None], [[0.6], [0.5, 0.5], None, [0.5]], [0, 1, 2, 3]),
        ([[None], [None]], [[None], [0.5]], [1]),
    ],
)
def test_lists_of_numbers_can_differ_in_the_last_digits(
    old: list[list[float] | None], new: list[list[float] | None], differ: list[int]
) -> None:
    before, after = (pa.chunked_array([pa.array(each, pa.list_(pa.float32()))]) for each in (old, new))
    assert differences(before, after) == differ


def test_an_embedding_that_is_not_finite_has_no_score(tmp_path: Path, head: str) -> None:
    images = IMAGES.copy()
    images[3, 5], images[60, 0] = np.inf, np.nan
    write_embedded(tmp_path / "out", images, TEXTS)
    add(tmp_path / "out", "head", head=head)
    add(tmp_path / "out", "neg", neg_clip={"batch": 40})
    add(tmp_path / "out", "dense", density={"sample": 200, "neighbors": 3, "clusters": 4})
    for name in ("head", "neg", "dense", "dense_cluster"):
        assert np.flatnonzero(np.isnan(column(tmp_path / "out", name))).tolist() == [3, 60]


def test_a_score_that_fails_in_every_shard_is_not_added_and_its_name_stays_free(folder: Path) -> None:
    failed = add(folder, "mixed", mix="9223372036854775807 * (2 + length(caption))")
    assert len(failed.failures) == failed.shards and "exceeds the range of 64-bit integers" in failed.failures[0]
    assert failed.notes == ["no shard could be scored, so the score was not added"]
    assert not list((folder / "columns/mixed").glob("*.*"))
    assert add(folder, "mixed", mix="similarity + 1").failures == {}


def test_a_score_without_any_value_says_so(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["score", str(folder), "nothing", "--score", "mix: similarity / 0"]).output
    assert "nothing: no value for 200 of these rows (no input, or no finite result): check" in shown
    shown = CliRunner().invoke(app, ["score", str(folder), "all", "--score", "mix: similarity + 1"]).output
    assert "no value" not in shown


def test_a_missing_model_is_named(folder: Path, head: str) -> None:
    with pytest.raises(pairmill.PairmillError, match="has no model 'l14'; it has: b32"):
        add(folder, "aesthetic", head={"weights": head, "model": "l14"})


def test_a_failing_shard_does_not_affect_others_and_is_scored_later(
    folder: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = score_shard.write_columns

    def failing(store: Store, name: str, columns: pa.Table, manifest: object, *rest: object) -> None:
        if manifest.shard == 2:
            raise ValueError("a bad page")
        honest(store, name, columns, manifest, *rest)

    monkeypatch.setattr(score_shard, "write_columns", failing)
    result = add(folder, "aesthetic", head=head)
    assert (result.shards_missing, list(result.failures)) == ([2], [2]) and "a bad page" in result.failures[2]
    monkeypatch.undo()
    assert add(folder, "aesthetic").shards_scored == 1


@pytest.mark.parametrize("step", ["read_manifest", "describe_shards", "opened", "write_columns"])
def test_a_shard_that_a_retry_replaces_meanwhile_is_named_as_missing_and_scored_by_the_next_run(
    tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever the score has done by then. If only the old generation was scored, the shard counts as missing too."""
    store, honest = write_embedded(tmp_path / "out", IMAGES[:50], TEXTS[:50]), getattr(score_shard, step)

    def beside_a_retry(*arguments: object) -> object:
        if store.exists("manifests/000000000.json"):
            supersede(store, 0)
        return honest(*arguments)

    monkeypatch.setattr(score_shard, step, beside_a_retry)
    result = add(tmp_path / "out", "aesthetic", head=head)
    assert result.shards_missing == [0]
    assert list(result.failures) == ([0] if step in ("read_manifest", "describe_shards") else [])
    assert all(
        "has replaced shard 0" in why and "run the same command again" in why for why in result.failures.values()
    )
    monkeypatch.undo()
    again = add(tmp_path / "out", "aesthetic")
    assert (again.shards_scored, again.shards_missing, again.failures) == (1, [], {})
    assert verify(store, rescore=0).problems == []


def test_verify_finds_a_value_that_the_state_does_not_reproduce(folder: Path, head: str) -> None:
    add(folder, "aesthetic", head=head)
    card = folder / "columns/aesthetic/score.json"
    state = folder / json.loads(card.read_text())["state"]["path"]
    report = verify(Store(str(folder)), rescore=16)
    assert (report.problems, report.scores_recomputed) == ([], 16)
    changed = unit_vectors(9, 200)
    write_embedded(folder.parent / "other", changed, TEXTS)
    add(folder.parent / "other", "aesthetic", head=head)
    for name in ("000000001.parquet", "manifests/000000001.json"):  # columns of another dataset
        target = folder / "columns/aesthetic" / name
        target.write_bytes((folder.parent / "other/columns/aesthetic" / name).read_bytes())
    manifest = json.loads((folder / "manifests/000000001.json").read_text())
    change(target, pairs_blake2b=manifest["files"]["pairs"]["blake2b"])
    (problem,) = verify(Store(str(folder)), rescore=16).problems
    differs = "aesthetic of 4 rows differs from the recomputed values of columns/aesthetic"
    assert problem.startswith(f"shard 000000001: {differs}")
    state.write_bytes(state.read_bytes()[:-1] + b"\x00")
    assert any("has changed since it was written" in each for each in verify(Store(str(folder))).problems)


def test_the_error_about_a_damaged_card_names_it_and_the_remedy(folder: Path, head: str) -> None:
    add(folder, "aesthetic", head=head)
    (folder / "columns/aesthetic/score.json").write_text("{}")
    remedy = r"score\.json is damaged or not pairmill's; move it elsewhere and run: pairmill score"
    with pytest.raises(DamagedManifestError, match=remedy):
        add(folder, "aesthetic")
    assert any("score.json is damaged" in each for each in verify(Store(str(folder))).problems)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("rank(nothing)", "there is no column 'nothing'"),
        ("rank(rank(similarity))", "of a rank or zscore is not supported"),
        ("rank(similarity, 2)", "takes one column or expression"),
        ("similarity > 0", "is bool, not a number"),
        ("__import__('os')", "is not supported"),
        ("rank(caption)", "is string, not a number"),
        ("0.5", "uses no column"),
        ("zscore(1e-200 * similarity)", "squares are rounded to 0; use rank"),
        ("zscore(1e200 * similarity)", "squares are infinite; use rank"),
    ],
)
def test_a_meaningless_mix_is_refused(folder: Path, formula: str, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        add(folder, "mixed", mix=formula)
    assert not (folder / "columns").exists()


def test_a_score_can_be_submitted_if_the_cluster_can_find_its_files(
    tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pairmill.jobs.cli.main import app

    group = typer.main.get_command(app)
    command = parse_command(group, ["score", "s3://b/out", "aesthetic", "--score", f"head: {head}"])
    assert (command.uris, command.has_models) == (["s3://b/out", head], False)
    with bundled(command) as bundle:
        assert bundle.command() == [*command.arguments, "--set", "run.address=auto"]
    assert parse_command(group, ["score", "s3://b/out", "neg"]).has_models
    (tmp_path / "b32").mkdir()  # must not be mistaken for the model with the alias b32
    monkeypatch.chdir(tmp_path)
    given = "head: {weights: head.safetensors, model: b32}"
    relative = parse_command(group, ["score", "s3://b/out", "aesthetic", "--score", given])
    with pytest.raises(pairmill.JobError, match=r"head\.safetensors: is relative to the current"), bundled(relative):
        pass
