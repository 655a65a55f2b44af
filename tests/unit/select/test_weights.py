"""Tests the step `repeat`: the weights of soft cap sampling and of expressions, as the subset stores them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.main import app
from pairmill.jobs.job_file import load_select_job
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_rows, read_shards, read_subset
from pairmill.pipeline.feed.pair_dataset import FeedConfig, PairDataset
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.soft_cap import NumberBuckets, merge_buckets, solve_shift
from pairmill.pipeline.select.subset_diff import compare
from pairmill.pipeline.select.weights import soft_cap
from pairmill.schemas.errors import JobError
from tests.synthetic_dataset import default_columns, write_dataset
from tests.unit.select.conftest import DUCKDB, make_subset

Step = dict[str, object]


def rows_of(dataset: Path, name: str) -> pa.Table:
    store = Store(str(dataset))
    return pa.concat_tables(read_rows(store, read_subset(store, name)))


def weights_of(dataset: Path, name: str) -> dict[str, float]:
    rows = rows_of(dataset, name)
    return dict(zip(rows["uid"].to_pylist(), rows["weight"].to_pylist(), strict=True))


def shift_of(numbers: np.ndarray[Any, Any], alpha: float, highest: float, samples: float, parts: int = 1) -> float:
    output = NumberBuckets(Expression("z"))
    tables = [pa.table({"z": part}) for part in np.array_split(numbers, parts)]
    return solve_shift(
        merge_buckets(*(output.collect(table, np.arange(table.num_rows))[0] for table in tables)),
        alpha,
        highest,
        samples,
    )


def test_weights_equal_the_expected_draws_of_soft_cap_sampling() -> None:
    """The oracle repeatedly draws b rows without replacement in proportion to e^z (Gumbel top-b) and lowers their z by
    alpha. FLYT's sampling with b = 16 is known to give 9.0 draws near z = 5. For small b, the limit is 9.08."""
    rows, draws, alpha, found = 10_000, 16, 0.15, []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        z = rng.normal(0, 2.5, rows)
        current, counts = z.copy(), np.zeros(rows)
        for _ in range(rows // draws):
            drawn = np.argpartition(current - np.log(rng.standard_exponential(rows)), -draws)[-draws:]
            counts[drawn] += 1
            current[drawn] -= alpha
        shift = shift_of(z, alpha, np.inf, rows)
        weights, bins = soft_cap(z, alpha, shift), np.digitize(z, np.arange(0, 7))
        assert weights.sum() == pytest.approx(rows, rel=1e-5)
        found.append([np.bincount(bins, values) / np.bincount(bins) for values in (weights, counts)])
        found[-1].append(soft_cap(np.full(8, 5.0), alpha, shift))
    means, drawn_means, at_five = np.mean(found, axis=0)
    assert means == pytest.approx(drawn_means, rel=0.04, abs=0.01)
    assert at_five[0] == pytest.approx(9.08, abs=0.15)


@pytest.mark.parametrize("highest", [np.inf, 2.0])
def test_the_scale_gives_the_requested_sum_and_does_not_depend_on_the_number_of_parts(highest: float) -> None:
    rng = np.random.default_rng(1)
    z = np.concatenate([rng.normal(-30, 20, 3_000), [0.0, -0.0, 1e-300, np.nan, -np.inf], np.full(500, 7.25)])
    for samples in (100.0, 3_000.0, 6_000.0):
        shifts = {shift_of(rng.permutation(z), 0.3, highest, samples, parts) for parts in (1, 2, 8)}
        assert len(shifts) == 1
        finite = z[np.isfinite(z)]
        total = np.minimum(np.log1p(np.exp(finite + shifts.pop())) / 0.3, highest).sum()
        assert total == pytest.approx(samples, rel=1e-5)


@pytest.mark.parametrize("chunk_rows", [6_000, 1_500])
def test_the_weights_do_not_depend_on_the_chunks(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, chunk_rows: int
) -> None:
    steps: list[Step] = [{"repeat": {"by": "20 * similarity", "mean": 1.5, "max": 4}}]
    one = make_subset(dataset, "one", *steps)
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", chunk_rows)
    other = make_subset(dataset, "other", *steps)
    assert (other.reports, other.weight_sum) == (one.reports, one.weight_sum)
    assert rows_of(dataset, "one").equals(rows_of(dataset, "other"))
    weights = rows_of(dataset, "one")["weight"].to_numpy().astype(float)
    assert weights.sum() == pytest.approx(1.5 * len(weights), rel=1e-5)
    assert weights.max() == 4
    assert one.weight_sum == pytest.approx(weights.sum(), rel=1e-5)


def test_an_expression_is_used_as_the_weight_and_rows_without_a_weight_are_dropped(dataset: Path) -> None:
    subset = make_subset(dataset, "e", {"repeat": {"weight": "8 * similarity - 2", "max": 1.25}})
    query = f"""
        with rows as (select uid, 8 * similarity::double - 2 as weight
                      from read_parquet('{dataset}/pairs/*.parquet', filename = true, file_row_number = true)
                      where status = 'ok'
                      qualify row_number() over (partition by uid order by filename, file_row_number) = 1)
        select uid, least(1.25, weight) from rows where weight > 0"""
    expected = dict(DUCKDB.execute(query).fetchall())
    found = weights_of(dataset, "e")
    assert found == pytest.approx(expected, abs=1e-6)
    report = subset.reports[-1].repeat
    assert report is not None and report.highest == 1.25
    assert report.weight_sum == subset.weight_sum == pytest.approx(sum(expected.values()), rel=1e-5)
    assert report.rows_below_one == sum(weight < 1 for weight in expected.values())
    assert subset.rows_out == len(expected) < subset.reports[-1].rows_in


def test_weights_survive_later_steps(dataset: Path) -> None:
    repeat = {"repeat": {"weight": "10 * similarity"}}
    make_subset(dataset, "all", repeat)
    top = make_subset(dataset, "top", repeat, {"top": {"by": "-similarity", "count": 50}})
    every, found = weights_of(dataset, "all"), weights_of(dataset, "top")
    assert found == {uid: every[uid] for uid in found}
    assert sorted(found.values()) == sorted(every.values())[:50]
    assert top.weight_sum == pytest.approx(sum(found.values()), rel=1e-5)
    assert top.reports[2].repeat is not None and top.reports[2].repeat.weight_sum > 10


def test_readers_return_the_weight_and_other_commands_ignore_it(dataset: Path) -> None:
    make_subset(dataset, "w", {"repeat": {"weight": "10 * similarity"}})
    make_subset(dataset, "plain", {"where": "similarity > 0.25"})
    weights = weights_of(dataset, "w")
    table = pairmill.open(dataset).table(["weight", "uid", "similarity"], subset="w")
    assert dict(zip(table["uid"].to_pylist(), table["weight"].to_pylist(), strict=True)) == weights
    assert np.allclose(table["weight"].to_numpy(), 10 * table["similarity"].to_numpy())
    opened = pairmill.open(dataset).subset("w")
    assert opened.schema.names.count("weight") == 1 and len(opened) == len(weights)
    assert next(opened.rows(["weight"], pictures=False))["weight"] == next(iter(weights.values()))
    assert "weight" not in pairmill.open(dataset).schema.names
    assert compare(Store(str(dataset)), "w", "plain").both > 0
    store = Store(str(dataset))
    for shard in read_shards(store, read_subset(store, "w")):
        assert shard.weights is not None and len(shard.weights) == shard.num_selected
    result = CliRunner().invoke(app, ["select", str(dataset), "--refresh", "w"])
    assert "samples per epoch" in result.output and result.exit_code == 0
    assert weights_of(dataset, "w") == weights
    subset = read_subset(Store(str(dataset)), "plain")
    assert "weight_sum" not in subset.model_dump() and subset.weight_sum is None
    assert pq.read_schema(dataset / subset.files[0].rows.path).names == ["shard", "row", "uid"]


def test_every_reader_shows_the_weights_of_the_subset_instead_of_the_datasets_own_column(tmp_path: Path) -> None:
    def columns(*part: int) -> dict[str, pa.Array]:
        return default_columns(*part) | {"weight": pa.array(np.full(part[2], 7.0))}

    write_dataset(tmp_path / "out", 120, shard_rows=50, columns=columns)
    make_subset(tmp_path / "out", "w", {"repeat": {"weight": "10 * similarity"}})
    make_subset(tmp_path / "out", "plain", {"where": "similarity > 0.25"})
    assert len(weights := weights_of(tmp_path / "out", "w")) > 90

    def fed(folder: str, subset: str | None = None) -> dict[str, float]:
        feed = PairDataset(FeedConfig(tmp_path / folder, subset, columns=("similarity", "weight"), batch_size=16))
        return {uid: weight for each in feed for uid, weight in zip(each["uid"], each["weight"].tolist(), strict=True)}

    table = pairmill.open(tmp_path / "out").table(["uid", "weight"], subset="w")
    assert dict(zip(table["uid"].to_pylist(), table["weight"].to_pylist(), strict=True)) == weights
    shown = fed("out", "w")
    assert shown == {uid: weights[uid] for uid in shown} and len(shown) > 90
    assert set(fed("out", "plain").values()) == {7.0}
    pairmill.mix(tmp_path / "mix", {f"{tmp_path}/out:plain": 1.0}, count=180, repeat=True)
    (weight,) = set(fed("mix").values())
    assert weight == pytest.approx(180 / len(fed("mix"))) and weight != 7.0


@pytest.mark.parametrize(
    ("repeat", "says"),
    [
        ({}, "either by"),
        ({"by": "a", "weight": "b"}, "either by"),
        ({"by": "a"}, "needs either samples"),
        ({"by": "a", "samples": 3, "mean": 1}, "needs either samples"),
        ({"weight": "a", "mean": 1}, "work only with by"),
        ({"by": "a", "mean": 1, "alpha": 0}, "greater than 0"),
        ({"by": "a", "mean": float("inf")}, "finite"),
        ({"weight": 2}, "weight: write an expression with a column"),
        ({"weight": "a", "max": 1e9}, "less than or equal to 10000"),
    ],
)
def test_a_contradictory_step_is_refused(repeat: Step, says: str) -> None:
    with pytest.raises(JobError, match=says):
        load_select_job(None, {"dataset": "out", "name": "n", "steps": [{"repeat": repeat}]})


def test_a_row_can_have_only_one_weight() -> None:
    with pytest.raises(JobError, match="only one step can be a repeat"):
        load_select_job(None, {"dataset": "out", "name": "n", "steps": [{"repeat": {"weight": "a"}}] * 2})


@pytest.mark.parametrize(
    ("repeat", "says"),
    [
        ({"weight": "width * 1000"}, "the highest weight is .*; set max"),
        ({"weight": "width / 0"}, "the highest weight is inf; set max"),
        ({"by": "width", "samples": 1_000_000, "max": 2}, "need a higher max"),
        ({"by": "md5", "samples": 10}, "'md5' is string, not a number"),
        ({"weight": "2"}, "uses no column; name one"),
        ({"by": "image_offset", "samples": 10}, "`by` has no finite number in any row"),
        ({"by": "similarity * 1e17", "samples": 10, "max": 1000}, "scale `by` down, .*: .* requested 10 samples"),
        ({"by": "1700000000 + 20 * similarity", "samples": 10}, "subtract a constant: .* requested 10 samples"),
    ],
)
def test_impossible_weights_are_refused(dataset: Path, repeat: Step, says: str) -> None:
    with pytest.raises((JobError, ValueError), match=says):
        make_subset(dataset, "refused", {"repeat": repeat})
    assert not (dataset / "subsets/refused").exists()
