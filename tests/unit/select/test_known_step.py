"""Tests the step `known`. The oracles are anti-joins in DuckDB and cosines in NumPy."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pairmill.jobs.cli.main import app
from pairmill.jobs.select import refresh
from pairmill.schemas.errors import JobError
from pairmill.schemas.select_steps import SelectStep
from pairmill.schemas.subset import SelectJob, StepReport
from tests.embedded_dataset import add_embeddings
from tests.synthetic_dataset import default_columns, write_dataset
from tests.unit.select.conftest import Step, make_subset, oracle, row_ids

DIM = 16
THRESHOLD = 0.9
OK = pa.array(["ok"] * 6)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third of the rows of `dataset`, in shards of a different size."""
    folder = tmp_path_factory.mktemp("other")
    write_dataset(folder, 4_000, shard_rows=1_000)
    return folder


def pairs_of(dataset: Path) -> str:
    return f"read_parquet('{dataset}/pairs/*.parquet')"


@pytest.mark.parametrize("by", ["uid", "url", "sha256", "phash"])
def test_rows_of_another_dataset_are_dropped(dataset: Path, other: Path, many_chunks: None, by: str) -> None:
    subset = make_subset(dataset, "new", {"known": {"path": str(other), "by": by}}, {"where": "width > 300"})
    sql = f"""select * from rows where width > 300
              and ({by} is null or {by} not in (select {by} from {pairs_of(other)} where {by} is not null))"""
    assert row_ids(dataset, "new") == oracle(dataset, sql)
    report = subset.reports[2].known
    assert report is not None and 0 < subset.reports[2].rows_out < subset.reports[2].rows_in
    assert list(report.values) == [by]
    assert not (dataset / "tmp").exists()


def test_pictures_within_a_distance_of_known_ones_are_dropped(dataset: Path, other: Path, many_chunks: None) -> None:
    make_subset(dataset, "near", {"known": {"path": str(other), "by": "phash", "distance": 3}}, rows="pairs")
    columns = ["row_id", "uid", "phash"]
    mine, theirs = (
        pa.concat_tables([pq.ParquetFile(path).read(columns) for path in sorted(folder.glob("pairs/*"))])
        for folder in (dataset, other)
    )
    one, known = (
        np.array([int(value or "0", 16) for value in table["phash"].to_pylist()], np.uint64) for table in (mine, theirs)
    )
    parts = np.array_split(one, 50)
    is_known = np.concatenate([np.bitwise_count(part[:, None] ^ known).min(axis=1) <= 3 for part in parts])
    _, first = np.unique(mine["uid"].to_pylist(), return_index=True)
    first = np.sort(first)
    assert row_ids(dataset, "near") == mine["row_id"].take(pa.array(first[~is_known[first]])).to_pylist()
    assert mine["phash"].null_count == 0


def test_a_row_is_known_if_any_of_several_values_is_known(dataset: Path, other: Path) -> None:
    step: Step = {"known": {"path": str(other), "rows": "kept"}}
    sql = f"""with known as (select * from {pairs_of(other)} where status = 'ok')
              select * from rows
              where url not in (select url from known) and sha256 not in (select sha256 from known)"""
    subset = make_subset(dataset, "default", step)
    assert row_ids(dataset, "default") == oracle(dataset, sql)
    assert subset.reports[2].known is not None and set(subset.reports[2].known.values) == {"url", "sha256"}


def test_rows_that_stay_because_they_have_no_value_are_counted_per_kind(tmp_path: Path) -> None:
    """As in an output of `embed`, which has no URLs."""
    urls = pa.array(["http://a/1", None, "http://a/2", None, " ", "http://a/3"])
    write_dataset(tmp_path / "out", 6, columns=lambda *of: {**default_columns(*of), "url": urls, "status": OK})
    (tmp_path / "list.csv").write_text("url,md5\nhttp://a/1,\n,00112233445566778899aabbccddeeff\n")
    known = {"path": str(tmp_path / "list.csv"), "by": ["url", "md5"]}
    command = ["select", str(tmp_path / "out"), "new", "--step", json.dumps({"known": known}), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    report = StepReport.model_validate(json.loads(result.stdout[result.stdout.index("{") :])["reports"][2])
    assert report.rows_out == 5 and report.known is not None
    assert report.known.not_compared == {"md5": 5, "url": 3}
    assert "3 rows not compared by url: the value is missing or unusable" in result.stdout


def test_rows_outside_a_subset_can_be_selected(dataset: Path) -> None:
    make_subset(dataset, "wide", {"where": "width > 400"})
    make_subset(dataset, "rest", {"known": {"path": str(dataset), "subset": "wide", "by": "uid"}})
    assert row_ids(dataset, "rest") == oracle(dataset, "select * from rows where not width > 400")


def test_a_list_that_changes_is_reported_and_its_unused_lines_are_shown(dataset: Path, tmp_path: Path) -> None:
    rows = pa.concat_tables([pq.ParquetFile(path).read() for path in sorted(dataset.glob("pairs/*.parquet"))])
    (tmp_path / "urls.txt").write_text("\n".join(["# mine", "", *rows["url"].to_pylist()[:500]]))
    first = make_subset(dataset, "again", {"known": str(tmp_path / "urls.txt")})
    job = SelectJob(dataset=str(dataset), name="again")
    assert refresh(job).reports == first.reports
    (tmp_path / "urls.txt").write_text("\n".join(reversed(rows["url"].to_pylist()[:900])))
    result = CliRunner().invoke(app, ["select", str(dataset), "--refresh", "again", "--json"])
    assert result.exit_code == 0
    assert "the known rows have changed since" in result.stderr
    changed = StepReport.model_validate(json.loads(result.stdout[result.stdout.index("{") :])["reports"][2])
    assert changed.known is not None and first.reports[2].known is not None
    assert changed.known.earlier_blake2b == first.reports[2].known.blake2b != changed.known.blake2b
    assert first.reports[2].known.unused == {"comment": 1, "no url": 1}
    assert changed.step == first.reports[2].step == f"known: {tmp_path}/urls.txt"


@cache
def known_directions() -> npt.NDArray[np.float64]:
    return np.random.default_rng(1).normal(size=(3_000, DIM))


@cache
def directions() -> npt.NDArray[np.float64]:
    """The directions of all rows. One row in five is near a known direction; some rows are zero."""
    found = np.random.default_rng(2).normal(size=(12_000, DIM))
    noise = np.random.default_rng(3).normal(size=(2_400, DIM)) * 0.4
    found[::5] = known_directions()[:2_400] + noise
    found[3::97] = 0
    return found


def vectors(rows: slice) -> npt.NDArray[np.float16]:
    """The embeddings of these rows. Some are zero."""
    found = directions()[rows]
    return (found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)).astype(np.float16)


def known_vectors(rows: slice) -> npt.NDArray[np.float16]:
    """The embeddings of these known rows. Some are NaN."""
    found = known_directions()[rows] / np.linalg.norm(known_directions()[rows], axis=1, keepdims=True)
    found[np.arange(rows.start, rows.stop) % 89 == 5] = np.nan
    return found.astype(np.float16)


def test_rows_with_embeddings_near_known_ones_are_dropped(
    dataset: Path, tmp_path: Path, many_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    shutil.copytree(dataset, mine, ignore=shutil.ignore_patterns("subsets"))
    write_dataset(other, 1_500, seed=2, shard_rows=500)
    add_embeddings(mine, "clip", vectors)
    add_embeddings(other, "b32", known_vectors)
    step = {"path": str(other), "by": "embedding", "other_model": "b32", "threshold": THRESHOLD}
    monkeypatch.setattr("pairmill.pipeline.known.embeddings._BLOCK_VECTORS", 333)
    subset = make_subset(mine, "new", {"known": step}, rows="pairs")
    ours, theirs = vectors(slice(0, 12_000)).astype(np.float64), known_vectors(slice(0, 1_500)).astype(np.float64)
    norms = np.linalg.norm(ours, axis=1)[:, None] * np.linalg.norm(theirs, axis=1)
    with np.errstate(invalid="ignore"):
        highest = np.fmax.reduce(ours @ theirs.T / norms, axis=1)  # NaN for a row without an embedding
    is_new = ~(highest >= THRESHOLD)
    assert 500 < (~is_new).sum() < 2_000
    table = pa.concat_tables(
        [pq.ParquetFile(path).read(["row_id", "uid"]) for path in sorted(mine.glob("pairs/*.parquet"))]
    )
    _, first = np.unique(table["uid"].to_pylist(), return_index=True)
    assert row_ids(mine, "new") == table["row_id"].take(pa.array(np.sort(first[is_new[first]]))).to_pylist()
    report = subset.reports[2].known
    assert report is not None and report.values == {"embedding": 1_500 - 17}
    assert report.not_compared == {"embedding": int((norms[first, 0] == 0).sum())}

    for wrong, problem in [
        ({"other_model": None}, "has no column 'image_embedding_clip': set other_model to that dataset's alias"),
        ({"model": "x"}, "there is no model 'x'; the dataset has embeddings by: clip"),
        ({"by": "text_embedding"}, "there is no column 'text_embedding_clip'"),
    ]:
        with pytest.raises((JobError, ValueError), match=problem):
            make_subset(mine, "wrong", {"known": {**step, **wrong}})
    monkeypatch.setattr("pairmill.pipeline.known.embeddings.MAX_VECTORS", 1_000)
    with pytest.raises(ValueError, match="more than 1,000 embeddings"):
        make_subset(mine, "wrong", {"known": step})
    add_embeddings(other, "clip", known_vectors, weights="v" * 64)
    add_embeddings(other, "quick", known_vectors, quick_gelu=True)
    for other_model in (None, "quick"):
        with pytest.raises(ValueError, match="were not made with the weights and activation of 'clip'"):
            make_subset(mine, "wrong", {"known": {**step, "other_model": other_model}})


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ({"path": "none"}, "step 1, known: .*none cannot be read: .*no input found"),
        ({"path": "a.txt", "by": "embedding"}, "is not a dataset"),
        ({"path": "empty.txt", "by": "uid"}, "known: .*empty.txt has no values"),
        ({"path": "/dev/null", "by": "uid"}, "is a pipe or device, .* write its content to a file first"),
    ],
)
def test_mistakes_are_found_before_any_work(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("http://a.example/\n")
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    with pytest.raises(JobError, match=problem):
        make_subset(dataset, "wrong", {"known": step})


def test_incompatible_settings_are_refused() -> None:
    for known, problem in [
        ({"path": "a", "distance": 3}, "distance works only with by: phash and by: pdq"),
        ({"path": "a", "by": "phash", "distance": 9}, "at most 8 with by: phash"),
        ({"path": "a", "threshold": 0.9}, "threshold works only with by: embedding"),
        ({"path": "a", "column": "x"}, "column needs by"),
        ({"path": "a", "subset": "s", "rows": "all"}, "either rows or a subset"),
        ({"path": "a", "by": "embedding", "column": "x"}, "column is only for lists"),
        ({"path": "a", "by": "embedding", "rows": "all"}, "which have no embeddings"),
        ({"path": "a", "by": "colour"}, "by"),
    ]:
        with pytest.raises(ValueError, match=problem):
            SelectStep.model_validate({"known": known})
    assert str(SelectStep.model_validate({"known": {"path": "a", "by": ["uid", "url"]}})) == "known: a, by uid url"
