"""Compares subsets with DuckDB's results on the same files, and with brute force."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pairmill.jobs.cli.main import app
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.select import near_duplicates
from pairmill.pipeline.select.keys import TIES, uid_hashes
from pairmill.pipeline.select.steps import dedup, top
from pairmill.pipeline.select.subset_diff import compare
from tests.synthetic_dataset import write_dataset
from tests.unit.select.conftest import DUCKDB, ROWS, make_subset, oracle, row_ids

pytestmark = pytest.mark.usefixtures("many_chunks")

WHERE = {"where": "similarity >= 0.22 and width > height"}
IN_SQL = "similarity >= 0.22 and width > height"


def test_without_steps_one_kept_row_remains_per_uid(dataset: Path) -> None:
    subset = make_subset(dataset, "plain")
    assert row_ids(dataset, "plain") == oracle(dataset, "select * from rows")
    assert [report.step for report in subset.reports] == ["rows: kept", "dedup: by uid"]
    assert subset.reports[0].rows_in == ROWS


def test_with_rows_set_to_pairs_dropped_rows_can_be_selected_too(dataset: Path) -> None:
    make_subset(dataset, "all", rows="pairs")
    expected = "select * from all_rows qualify row_number() over (partition by uid order by row_index) = 1"
    assert row_ids(dataset, "all") == oracle(dataset, expected)


def test_a_threshold_selects_the_same_rows_as_duckdb(dataset: Path) -> None:
    make_subset(dataset, "where", WHERE)
    assert row_ids(dataset, "where") == oracle(dataset, f"select * from rows where {IN_SQL}")


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.5, 0.999, 1.0])
def test_a_top_fraction_selects_the_rows_that_duckdb_ranks_highest(dataset: Path, fraction: float) -> None:
    subset = make_subset(dataset, "top", WHERE, {"top": {"by": "similarity", "fraction": fraction}})
    count = f"(select round({fraction} * count(*)) from rows where {IN_SQL})"
    expected = f"select * from rows where {IN_SQL} qualify row_number() over (order by similarity desc) <= {count}"
    selected = row_ids(dataset, "top")
    assert selected == oracle(dataset, expected)  # no two similarities of these rows are equal
    assert len(selected) == subset.rows_out == round(fraction * subset.reports[-1].rows_in)


@pytest.mark.parametrize("count", [1, 1_234, 10**9])
def test_the_number_of_rows_is_exact_even_if_all_scores_tie(dataset: Path, count: int) -> None:
    subset = make_subset(dataset, "ties", {"top": {"by": "width - width", "count": count}})
    again = make_subset(dataset, "sample", {"sample": {"count": count, "seed": 0}})
    assert subset.rows_out == again.rows_out == min(count, subset.reports[-1].rows_in)


def test_which_rows_win_a_tie_depends_on_their_uids_alone(dataset: Path) -> None:
    """The rows that tie at the threshold are scattered among others, and only their uids are read."""
    make_subset(dataset, "plain")
    query = f"select row_id, uid, width from read_parquet('{dataset}/pairs/*.parquet')"
    found = {row_id: (uid, width) for row_id, uid, width in DUCKDB.execute(query).fetchall()}
    rows = row_ids(dataset, "plain")
    ties = uid_hashes(pa.chunked_array([[found[row][0] for row in rows]]), TIES, 0)
    tied = sum(found[row][1] >= 600 for row in rows)
    assert len(rows) / 5 < tied < len(rows)
    make_subset(dataset, "won", {"top": {"by": "least(width, 600)", "count": tied // 2}})
    key = {row: (min(found[row][1], 600), tie) for row, tie in zip(rows, ties.tolist(), strict=True)}
    assert sorted(row_ids(dataset, "won")) == sorted(sorted(rows, key=key.__getitem__)[-(tied // 2) :])


def test_a_sample_does_not_favor_rows_that_won_a_tie(dataset: Path) -> None:
    """Of the 4,000 kept rows, the wide rows are kept for their score, and the others because they won ties. About a
    quarter of each group must be in the sample."""
    top = {"top": {"by": "greatest(width - 900, height - height)", "count": 4_000}}
    make_subset(dataset, "tied", top)
    make_subset(dataset, "sampled", top, {"sample": {"fraction": 0.25}})
    query = f"select row_id from read_parquet('{dataset}/pairs/*.parquet') where width > 900"
    wide = {row[0] for row in DUCKDB.execute(query).fetchall()}
    before, after = set(row_ids(dataset, "tied")), set(row_ids(dataset, "sampled"))
    assert 0.15 < len(after & wide) / len(before & wide) < 0.35


def test_equal_values_that_look_like_hex_are_duplicates_whatever_else_their_shards_contain(tmp_path: Path) -> None:
    write_dataset(tmp_path / "own", 40, shard_rows=20)
    for shard, captions in enumerate((["deadbeefdeadbeef"] * 20, ["deadbeefdeadbeef", *map(str, range(19))])):
        path = tmp_path / f"own/pairs/{shard:09d}.parquet"
        table = pq.ParquetFile(path).read()
        index = table.schema.get_field_index("caption")
        pq.write_table(table.set_column(index, table.schema.field(index), pa.array([captions])[0].values), path)
    make_subset(tmp_path / "own", "once", {"dedup": {"by": "caption"}}, rows="pairs")
    expected = "select * from firsts qualify row_number() over (partition by caption order by row_index) = 1"
    firsts = "firsts as (select * from all_rows qualify row_number() over (partition by uid order by row_index) = 1)"
    assert row_ids(tmp_path / "own", "once") == oracle(tmp_path / "own", f"with {firsts} {expected}")


@pytest.mark.parametrize("fraction", [0.9999, 1.0])
def test_nulls_rank_last_and_a_top_fraction_can_include_them(dataset: Path, fraction: float) -> None:
    subset = make_subset(dataset, "nulls", {"top": {"by": "similarity", "fraction": fraction}})
    scored = oracle(dataset, "select * from rows where similarity is not null")
    assert set(scored) < set(row_ids(dataset, "nulls"))
    assert subset.reports[-1].without_score == subset.rows_out - len(scored)
    printed = CliRunner().invoke(app, ["select", str(dataset), "--refresh", "nulls"]).output
    assert f"{subset.rows_out - len(scored)} rows kept without a score" in printed


@pytest.mark.parametrize("sampled", [1, 20, 1_000])
def test_the_top_is_exact_however_few_keys_are_sampled(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, sampled: int
) -> None:
    make_subset(dataset, "exact", {"top": {"by": "similarity", "fraction": 0.3}})
    monkeypatch.setattr(top, "SAMPLED_ROWS", sampled)
    monkeypatch.setattr(top, "WINDOW_SIGMAS", 0.01)  # so that the first window misses the threshold
    make_subset(dataset, "guessed", {"top": {"by": "similarity", "fraction": 0.3}})
    assert row_ids(dataset, "guessed") == row_ids(dataset, "exact")


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of twelve shards. The width of each row is the number of its shard."""
    folder = tmp_path_factory.mktemp("numbered")
    write_dataset(folder, 240, shard_rows=20)
    for shard in range(12):
        path = folder / f"pairs/{shard:09d}.parquet"
        table = pq.ParquetFile(path).read()
        for name, values in (("width", [shard] * table.num_rows), ("similarity", [shard / 50] * table.num_rows)):
            index = table.schema.get_field_index(name)
            table = table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))
        pq.write_table(table, path)
    return folder


@pytest.mark.parametrize("where", ["width >= 0", "width == 3", "width in (3, 4, 5, 8)"])
@pytest.mark.parametrize("share", [{"fraction": 0.3}, {"count": 17}, {"fraction": 1.0}, {"count": 10**6}])
def test_the_top_is_exact_if_keys_are_sampled_from_a_few_shards_and_the_shards_all_differ(
    numbered: Path, monkeypatch: pytest.MonkeyPatch, where: str, share: dict[str, float]
) -> None:
    """Some of the conditions drop every row of the sampled shards."""
    steps: Any = [{"where": where}, {"top": {"by": "similarity * similarity", **share}}, {"sample": {"fraction": 0.5}}]
    make_subset(numbered, "all", *steps)
    monkeypatch.setattr(top, "SAMPLED_SHARDS", 2)
    make_subset(numbered, "few", *steps)
    assert row_ids(numbered, "few") == row_ids(numbered, "all")


@pytest.mark.parametrize("by", ["sha256", "url", "phash", "width", "caption"])
def test_exact_dedup_keeps_the_first_of_each_group(dataset: Path, by: str) -> None:
    make_subset(dataset, "dedup", {"dedup": {"by": by}})
    expected = f"select * from rows qualify row_number() over (partition by {by} order by row_index) = 1"
    assert row_ids(dataset, "dedup") == oracle(dataset, expected)


def test_exact_dedup_keeps_the_best_of_each_group(dataset: Path) -> None:
    subset = make_subset(dataset, "best", WHERE, {"dedup": {"by": "sha256", "best": "similarity"}})
    expected = f"""select * from rows where {IN_SQL}
                   qualify row_number() over (partition by sha256 order by similarity desc nulls last, row_index) = 1"""
    assert row_ids(dataset, "best") == oracle(dataset, expected)
    sizes = "select count(*) as n from ({}) group by sha256 order by n desc limit 5"
    clusters = [cluster.rows for cluster in subset.reports[-1].largest_clusters]
    rows = f"""select * from (select *, row_number() over (partition by uid order by filename, file_row_number) as nth
               from read_parquet('{dataset}/pairs/*.parquet', filename = true, file_row_number = true)
               where status = 'ok') where nth = 1 and {IN_SQL}"""
    assert clusters == [row[0] for row in DUCKDB.execute(sizes.format(rows)).fetchall()]


def test_a_dedup_split_into_many_partitions_selects_the_same_rows(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: Any = [{"dedup": {"by": "sha256"}}, {"dedup": {"by": "phash", "distance": 2}}]
    make_subset(dataset, "one", *steps)
    monkeypatch.setattr(dedup, "PARTITION_ROWS", 1_000)
    monkeypatch.setattr(near_duplicates, "PARTITION_ROWS", 1_000)
    monkeypatch.setattr(near_duplicates, "TASK_ROWS", 7_000)
    monkeypatch.setattr("pairmill.pipeline.select.tasks.LocalTasks.memory_bytes", 200_000)
    make_subset(dataset, "many", *steps)
    assert row_ids(dataset, "many") == row_ids(dataset, "one")


def test_a_null_is_never_a_duplicate_and_is_counted(dataset: Path, many_chunks: None) -> None:
    report = make_subset(dataset, "none", {"dedup": {"by": "md5"}}).reports[-1]
    assert report.rows_out == report.rows_in == report.not_compared > 0


def brute_force_pairs(hashes: Any, distance: int) -> set[tuple[int, int]]:
    """Pairs of positions, the smaller one first, whose hashes differ in 1 to `distance` bits."""
    found: set[tuple[int, int]] = set()
    for start in range(0, len(hashes), 500):
        block, later = hashes[start : start + 500], hashes[start:]
        bits = np.bitwise_count(block[:, None] ^ later[None, :])
        bits -= 1  # equal hashes get 255
        one, other = np.nonzero(bits < distance)
        found.update((a, b) for a, b in zip((one + start).tolist(), (other + start).tolist(), strict=True) if a < b)
    return found


def test_every_row_that_a_near_dedup_drops_is_near_a_kept_row_and_no_two_kept_rows_are_near(dataset: Path) -> None:
    make_subset(dataset, "before")
    make_subset(dataset, "after", {"dedup": {"by": "phash", "distance": 4, "best": "similarity"}})
    query = f"select row_id, phash, similarity from read_parquet('{dataset}/pairs/*.parquet')"
    facts = {row: (int(phash, 16), score) for row, phash, score in DUCKDB.execute(query).fetchall()}
    kept = row_ids(dataset, "after")
    dropped = sorted(set(row_ids(dataset, "before")) - set(kept))
    assert 500 < len(dropped) < ROWS / 2
    hashes = np.array([facts[row][0] for row in kept], np.uint64)
    assert not brute_force_pairs(hashes, 4)
    scores = np.array([facts[row][1] or -1 for row in kept])
    for row in dropped:
        near = np.bitwise_count(hashes ^ np.uint64(facts[row][0])) <= 4
        assert near.any()
        assert scores[near].max() >= (facts[row][1] or -1)


def test_a_smaller_sample_is_part_of_a_larger_one_with_the_same_seed(dataset: Path) -> None:
    make_subset(dataset, "small", {"sample": {"fraction": 0.1, "seed": 7}})
    make_subset(dataset, "large", {"sample": {"fraction": 0.4, "seed": 7}})
    make_subset(dataset, "other", {"sample": {"fraction": 0.1, "seed": 8}})
    small, large, other = (set(row_ids(dataset, name)) for name in ("small", "large", "other"))
    assert small < large
    assert 0.05 < len(small & other) / len(small) < 0.2
    assert abs(len(small) - 0.1 * len(oracle(dataset, "select * from rows"))) < 1


def test_steps_run_in_the_order_given(dataset: Path) -> None:
    top = {"top": {"by": "similarity", "fraction": 0.5}}
    first, second = make_subset(dataset, "first", WHERE, top), make_subset(dataset, "second", top, WHERE)
    assert first.rows_out != second.rows_out
    for subset in (first, second):
        for one, next_one in zip(subset.reports, subset.reports[1:], strict=False):
            assert one.rows_out == next_one.rows_in


def test_a_row_in_both_subsets_is_in_neither_difference(dataset: Path) -> None:
    make_subset(dataset, "loose", {"where": "similarity >= 0.2"})
    make_subset(dataset, "strict", {"where": "similarity >= 0.2"}, {"top": {"by": "similarity", "fraction": 0.5}})
    difference = compare(Store(str(dataset)), "loose", "strict")
    loose, strict = set(row_ids(dataset, "loose")), set(row_ids(dataset, "strict"))
    assert (difference.both, dict(difference.only_other)) == (len(strict), {})
    assert dict(difference.only_one) == {3: len(loose - strict)}
    assert "dropped in strict by top: by similarity, fraction 0.5" in "\n".join(difference.lines())
