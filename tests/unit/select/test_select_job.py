"""Tests select as users see it: which jobs are refused and how, and how subsets behave when the dataset changes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pairmill.jobs.cli.main import app
from pairmill.jobs.job_file import load_select_job
from pairmill.jobs.select import refresh, select
from pairmill.pipeline.check.subset_files import check_subsets
from pairmill.pipeline.common.progress import ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import Chunk, ColumnsError
from pairmill.pipeline.dataset.subset import SubsetError, paths_of, publish, read_rows, read_subset
from pairmill.pipeline.select.subset_diff import NOT_SEEN, REBUILT, compare
from pairmill.pipeline.source.planned import PlanError
from pairmill.schemas.errors import JobError
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.subset import SelectJob
from tests.synthetic_dataset import write_dataset
from tests.unit.select.added import add_columns
from tests.unit.select.conftest import Step, make_subset, row_ids

TOP = {"top": {"by": "similarity", "fraction": 0.3}}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_dataset(folder, 2_000, shard_rows=200)
    return folder


@pytest.fixture
def own(original: Path, tmp_path: Path) -> Path:
    """A dataset of 2,000 rows in 10 shards that a test can change."""
    return Path(shutil.copytree(original, tmp_path / "own"))


def refused(dataset: Path, *steps: Step, **more: Any) -> str:
    with pytest.raises(JobError) as caught:
        make_subset(dataset, "refused", *steps, **more)
    assert not (dataset / "subsets/refused/selection.json").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ({"where": "similarty > 1"}, "step 2, where: there is no column 'similarty'; did you mean"),
        ({"top": {"by": "caption", "count": 1}}, "step 2, top: 'caption' is string, not a number"),
        ({"dedup": {"by": "sha1"}}, "step 2, dedup: there is no column 'sha1'"),
        ({"dedup": {"by": "image_offset", "best": "url"}}, "step 2, dedup: 'url' is string, not a number"),
        ({"where": "1 == 1"}, "step 2, where: '1 == 1' uses no column"),
        ({"dedup": {"by": "url", "best": "score"}}, "step 2, dedup: there is no column 'score'"),
    ],
)
def test_a_step_that_does_not_match_the_columns_is_named(own: Path, step: Step, says: str) -> None:
    assert says in refused(own, TOP, step)


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([{"top": {"by": "x"}}], "either a fraction or a count"),
        ([{"top": {"by": "x", "fraction": 0.3, "count": 3}}], "either a fraction or a count"),
        ([{"top": {"by": "x", "fraction": 0}}], "greater than 0"),
        ([{"sample": {"fraction": 1.5}}], "less than or equal to 1"),
        ([{"where": "a > 1", "sample": {"count": 1}}], "a step must be one of"),
        ([{}], "a step must be one of"),
        ([{"keep": "a > 1"}], "there is no such field"),
        ([{"dedup": {"by": "url", "distance": 3}}], "distance works only with by: phash"),
    ],
)
def test_a_contradictory_job_is_refused(steps: list[Any], says: str) -> None:
    with pytest.raises(JobError, match=says):
        load_select_job(None, {"dataset": "out", "name": "n", "steps": steps})


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a" * 101, "with blank"])
def test_a_name_cannot_be_a_path(name: str) -> None:
    with pytest.raises(JobError, match="name"):
        load_select_job(None, {"dataset": "out", "name": name})


def test_selecting_nothing_names_the_step_that_dropped_the_last_rows(own: Path) -> None:
    message = refused(own, {"where": "similarity > 0"}, {"where": "similarity > 5"}, {"dedup": {"by": "url"}})
    assert "'where: similarity > 5' dropped all " in message


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ({"top": {"by": "length(status_detail)", "fraction": 0.3}}, "null in all rows"),
        ({"top": {"by": "1 - length(status_detail)", "count": 5}}, "null in all rows"),
        ({"balance": {"by": "status_detail", "curve": 5}}, "null in all rows"),
        ({"repeat": {"by": "length(status_detail)", "mean": 1}}, "no finite number in any row"),
    ],
)
def test_a_step_by_an_expression_that_is_null_in_all_rows_is_refused(own: Path, step: Step, error: str) -> None:
    assert error in refused(own, {"where": "status_detail is None"}, step)


def test_selecting_from_a_dataset_without_pairs_says_so(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chunk, "num_rows", 0)
    monkeypatch.setattr(Chunk, "spans", lambda chunk: iter(()))
    assert "/own has no pairs: all of its rows were rejected or withdrawn" in refused(own, {"where": "width > 0"})


def test_an_unfinished_dataset_is_refused_unless_partial_is_set(own: Path) -> None:
    (own / "manifests/000000003.json").unlink()
    assert "is not finished: 1 of 10 shards missing" in refused(own, TOP)
    assert make_subset(own, "partial", TOP, partial=True).shards == 9
    again = refresh(SelectJob.model_validate({"dataset": str(own), "name": "partial"}))
    assert (again.shards, again.partial) == (9, True)


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="has no plan"):
        make_subset(tmp_path, "n", TOP)


def test_an_existing_subset_is_refused_unless_overwrite_is_given(own: Path) -> None:
    make_subset(own, "mine", TOP)
    job = SelectJob.model_validate({"dataset": str(own), "name": "mine"})
    with pytest.raises(JobError, match="already has a subset 'mine'"):
        select(job)
    assert len(list((own / "subsets/mine/rows").iterdir())) == 1
    select(job, overwrite=True)
    assert read_subset(Store(str(own)), "mine").steps == []
    assert len(list((own / "subsets/mine/rows").iterdir())) == 1


def test_a_dry_run_counts_and_writes_nothing(own: Path) -> None:
    before = sorted(own.rglob("*"))
    job = SelectJob.model_validate({"dataset": str(own), "name": "dry", "steps": [TOP]})
    counted = select(job, dry_run=True)
    assert sorted(own.rglob("*")) == before
    assert counted.reports == make_subset(own, "wet", TOP).reports


@pytest.mark.parametrize(("chunk_rows", "batch_rows"), [(100, 1), (700, 250), (5_000, 1)])
def test_the_subset_does_not_depend_on_chunks_and_batches(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, chunk_rows: int, batch_rows: int
) -> None:
    steps: list[Any] = [
        TOP,
        {"dedup": {"by": "phash", "distance": 3}},
        {"sample": {"fraction": 0.5}},
        {"dedup": {"by": "width"}},
    ]
    expected = row_ids(dataset, make_subset(dataset, "whole", *steps).name)
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr("pairmill.pipeline.select.scan.BATCH_ROWS", batch_rows)
    assert row_ids(dataset, make_subset(dataset, "spread", *steps).name) == expected


def test_after_a_dataset_grows_compare_explains_every_added_or_removed_row(own: Path) -> None:
    best = {"top": {"by": "similarity", "count": 400}}
    before = make_subset(own, "before", best)
    old = set(row_ids(own, "before"))
    write_dataset(own, 3_000, shard_rows=200)
    after = make_subset(own, "after", best)
    new = set(row_ids(own, "after"))
    difference = compare(Store(str(own)), "before", "after")
    fresh = sum(int(row.partition(":")[0]) >= 10 for row in new)
    assert difference.both == len(old & new)
    assert sum(difference.only_one.values()) == len(old - new) > 0
    assert sum(difference.only_other.values()) == len(new - old) > 0
    assert difference.only_other[NOT_SEEN] == fresh
    assert set(difference.only_one) == {2}
    assert set(difference.only_other) == {NOT_SEEN}
    assert before.generations_blake2b != after.generations_blake2b
    text = "\n".join(difference.lines())
    assert "in shards that did not exist when before was selected" in text
    assert f"(threshold {after.reports[2].threshold:.6g}, {before.reports[2].threshold:.6g} in before)" in text


def test_compare_explains_a_top_that_once_kept_every_row(own: Path) -> None:
    best = {"top": {"by": "similarity", "count": 2_400}}
    make_subset(own, "before", best)
    write_dataset(own, 4_000, shard_rows=200)
    make_subset(own, "after", best)
    assert "dropped in after by top" in "\n".join(compare(Store(str(own)), "before", "after").lines())


def test_columns_of_another_pairs_file_are_refused(own: Path) -> None:
    add_columns(own, "other", shards=range(10))
    manifest = own / "manifests/000000004.json"
    text = manifest.read_text()
    digest = ShardManifest.model_validate_json(text).files["pairs"].blake2b
    manifest.write_text(text.replace(digest, "0" * 32))
    with pytest.raises(ColumnsError, match=r"000000004\.json belongs to another pairs file; .* run: pairmill verify "):
        make_subset(own, "mispaired", {"where": "similarity_other > 0.5"})


def test_a_replaced_subset_leaves_no_files_and_a_failed_select_leaves_the_old_subset_whole(own: Path) -> None:
    make_subset(own, "mine", TOP)
    before = row_ids(own, "mine")
    with pytest.raises(JobError, match="nothing is left"):
        make_subset(own, "mine", {"where": "similarity > 5"})
    assert row_ids(own, "mine") == before
    make_subset(own, "mine", {"where": "similarity > 0.3"})
    assert len(list((own / "subsets/mine").rglob("*.parquet"))) == 2


def test_compare_follows_uids_into_a_rebuilt_shard(own: Path) -> None:
    make_subset(own, "before", TOP)
    old = set(row_ids(own, "before"))
    manifest = ShardManifest.model_validate_json((own / "manifests/000000002.json").read_bytes())
    table = pq.ParquetFile(own / "pairs/000000002.parquet").read()
    pq.write_table(table.slice(20), own / "pairs/000000002.g1.parquet")  # row numbers change, and some rows are gone
    file = manifest.files["pairs"].model_copy(update={"path": "pairs/000000002.g1.parquet", "blake2b": "1" * 32})
    newer = manifest.model_copy(update={"generation": 1, "pairs": 180, "rows_in": 180, "files": {"pairs": file}})
    (own / "manifests/000000002.g1.json").write_text(newer.model_dump_json())
    make_subset(own, "after", TOP)
    store = Store(str(own))
    difference = compare(store, "before", "after")
    uids = [
        {uid for table in read_rows(store, read_subset(store, name)) for uid in table["uid"].to_pylist()}
        for name in ("before", "after")
    ]
    assert difference.both == len(uids[0] & uids[1])
    assert sum(difference.only_one.values()) == len(uids[0] - uids[1])
    assert sum(difference.only_other.values()) == len(uids[1] - uids[0])
    assert difference.only_one[REBUILT] > 0
    assert difference.outdated == ("before",)
    assert list(difference.lines())[-1].endswith(f"select again: pairmill select {own} --refresh before")
    assert (
        refresh(load_select_job(None, {"dataset": str(own), "name": "before"})).reports
        == read_subset(store, "after").reports
    )
    assert compare(store, "before", "after").only_one == {}
    assert len(old) == len(uids[0])


def test_steps_can_use_an_added_model_once_every_shard_has_it(own: Path) -> None:
    add_columns(own, "other", shards=range(9))
    assert "some shards lack the model 'other'" in refused(own, {"where": "similarity_other > 0.5"})
    assert "there is no column 'any_other_column'" in refused(own, {"where": "any_other_column > 0.5"})
    add_columns(own, "other", shards=range(9, 10))
    subset = make_subset(own, "added", {"where": "similarity_other > 0.5 and similarity > 0.2"})
    assert 0 < subset.rows_out < subset.reports[-1].rows_in


def test_a_missing_or_damaged_subset_is_named(own: Path) -> None:
    store = Store(str(own))
    make_subset(own, "one", TOP)
    with pytest.raises(SubsetError, match="has no subset 'two'; it has: one"):
        compare(store, "one", "two")
    (own / "subsets/one/selection.json").write_text("{}")
    with pytest.raises(SubsetError, match="is damaged"):
        read_subset(store, "one")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["select", *arguments])


def test_the_command_prints_the_rows_that_each_step_left_and_one_json_line(own: Path) -> None:
    steps = ["--step", "where: similarity >= 0.2", "--step", "top: {by: similarity, count: 100}"]
    done = run(str(own), "mine", *steps, "--json")
    assert done.exit_code == 0, done.output
    everything = done.stdout.splitlines()
    largest = everything.index("    the rows with the most dropped duplicates:")
    assert everything[largest + 1].startswith("    ") and "duplicates of 00000" in everything[largest + 1]
    lines = [line for line in everything if not line.startswith("    ")]
    assert [line.split("  ")[0] for line in lines[:4]] == [
        "rows: kept", "dedup: by uid", "where: similarity >= 0.2", "top: by similarity, count 100",
    ]  # fmt: skip
    assert json.loads(lines[-1])["rows_out"] == 100


def test_the_command_reads_a_job_file_and_names_its_line(own: Path, tmp_path: Path) -> None:
    job = tmp_path / "select.yaml"
    job.write_text("steps:\n  - where: similarity >= 0.2\n  - top: {by: similarity, part: 0.3}\n")
    done = run(str(own), "mine", "--job", str(job))
    assert done.exit_code == 1
    assert f"{job}:3: step 2: top.part: there is no such field" in done.output
    job.write_text("steps:\n  - where: similarity >= 0.2\n  - top: {by: similarity, fraction: 0.3}\n")
    assert run(str(own), "mine", "--job", str(job)).exit_code == 0


@pytest.mark.parametrize("step", ["similarity > 1", "where", "[1]", "{", "where: {a: 1}"])
def test_a_malformed_step_on_the_command_line_is_refused(own: Path, step: str) -> None:
    done = run(str(own), "mine", "--step", step)
    assert done.exit_code == 1
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["n", "--mix", "x=1"], "leave out NAME: --mix can only be combined with --count, --dry-run"),
        (["--mix", "x=1", "--refresh"], "leave out --refresh: --mix"),
        (["n", "--refresh", "--preset", "x"], "leave out --preset: --refresh can only be combined with NAME"),
        (["--compare", "a", "b", "--all-pairs"], "leave out --all-pairs: --compare can only be combined with --set"),
        (["n", "--count", "5"], "--count is for mixtures"),
        (["a/b"], "name: use up to 100 letters"),
        (["n", "--step", "dedup: [1,2"], "is not valid YAML: expected"),
        (["n", "--step", "dedup: {by: phas}"], "did you mean 'phash'?"),
        (["n", "--step", "known: {path: x.txt, by: md}"], "known.by.0: Input should be 'uid', 'url'"),
        (["n", "--job", "/dev/null"], "/dev/null: is empty"),
        (["--refresh"], "is not a mixture; name the subset to select again: mine"),
        (["--compare", "mine", "mine"], "cannot compare 'mine' with itself: name two different"),
    ],
)
def test_the_command_names_what_is_wrong(own: Path, options: list[str], says: str) -> None:
    make_subset(own, "mine", TOP)
    (own / "x.txt").write_text("")
    done = run(str(own), *options)
    assert done.exit_code
    assert says in " ".join(done.output.replace("\u2502", " ").split())


def test_step_lines_fit_into_60_columns(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    long = "where: width >= 0 and height >= 0 and length(caption) < 100000000"
    steps = ["sample: {count: 5000}", long, "balance: {by: host, curve: 5}"]
    lines = run(str(own), "n", *(part for step in steps for part in ("--step", step))).output.splitlines()
    assert long in lines
    assert [line for line in lines if "->" in line and len(line) > 60] == []
    assert "    fewer rows than the 5,000 requested" in lines


def test_the_command_compares_two_subsets(own: Path) -> None:
    make_subset(own, "a", TOP)
    make_subset(own, "b")
    done = run(str(own), "--compare", "a", "b", "--json")
    assert done.exit_code == 0, done.output
    assert "only in b:" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["only_in"]["a"] == {}


def test_a_missing_file_of_the_dataset_is_named(own: Path) -> None:
    shutil.move(own / "pairs/000000004.parquet", own / "elsewhere.parquet")
    done = run(str(own), "mine", "--step", "where: width > 1")
    assert done.exit_code == 1
    assert "000000004.parquet" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("killed_at", ["first select", "refresh", "after the record of a refresh"])
def test_after_an_interrupted_run_the_rows_files_are_only_those_of_the_subset(
    own: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    """As the README says, other tools read `rows/*.parquet`."""
    again = select if killed_at == "first select" else refresh
    job = SelectJob.model_validate({"dataset": str(own), "name": "some", "steps": [TOP]})
    if again is refresh:
        select(job)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    method = {"first select": "create", "refresh": "replace"}.get(killed_at, "delete")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, method, die)
        again(job)
    files = sorted(own.glob("subsets/some/*/*.parquet"))
    if again is refresh:
        [*problems] = check_subsets(Store(str(own)), ignore_step)
        assert len(problems) == len(files) // 2 and all("is not part of the subset" in each for each in problems)
    subset = again(job)
    assert {str(path.relative_to(own)) for path in own.glob("subsets/some/*/*.parquet")} == paths_of(subset)
    assert pq.read_table(own / "subsets/some/rows").num_rows == subset.rows_out
    assert list(check_subsets(Store(str(own)), ignore_step)) == []


def test_of_two_refreshes_at_once_the_one_that_ends_first_counts(own: Path) -> None:
    job = SelectJob.model_validate({"dataset": str(own), "name": "some", "steps": [TOP]})
    before, store = select(job), Store(str(own))
    first = refresh(job)
    late = before.model_copy(update={"attempt": "late"})
    assert not publish(store, late, before)
    assert read_subset(store, "some") == first
    assert pq.read_table(own / "subsets/some/rows").num_rows == first.rows_out
