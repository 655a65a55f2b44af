"""Tests that every pair is served once per epoch, across all ranks and workers, no matter where a run was stopped."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairmill.pipeline.dataset.subset import SubsetError
from pairmill.pipeline.feed.dataset_rows import DatasetRows
from pairmill.pipeline.feed.pair_dataset import FeedConfig, FeedError, PairDataset
from tests.synthetic_dataset import write_dataset
from tests.unit.select.added import add_columns
from tests.unit.select.conftest import make_subset, row_ids

COLUMNS = ("row_id", "similarity", "width")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows in 8 shards, with subsets of 113, 1 and 2 rows."""
    folder = tmp_path_factory.mktemp("feed") / "small"
    write_dataset(folder, 300, shard_rows=40)
    for name, count in (("some", 113), ("one", 1), ("two", 2)):
        make_subset(folder, name, {"top": {"by": "similarity", "count": count}})
    return folder


def feed(folder: Path, subset: str | None = "some", **more: Any) -> PairDataset:
    return PairDataset(FeedConfig(str(folder), subset, **{"columns": COLUMNS, **more}))


@pytest.fixture(scope="module")
def expected(small: Path) -> dict[str, list[str]]:
    """The row_ids of each subset."""
    return {name: row_ids(small, name) for name in ("some", "one", "two")}


def rows_of(dataset: PairDataset) -> list[str]:
    found = [sample["row_id"] for sample in dataset]
    return [row for batch in found for row in batch] if dataset.config.batch_size else found


@settings(
    max_examples=settings.default.max_examples // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(["some", "one", "two", None]),
    st.integers(1, 7),
    st.booleans(),
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(1, 50)),
    st.floats(0, 1),
)
def test_every_selected_row_is_fed_once_per_epoch_wherever_each_consumer_was_stopped(
    small: Path,
    expected: dict[str, list[str]],
    subset: str | None,
    consumers: int,
    shuffle: bool,
    seed: int,
    epoch: int,
    mix_shards: int,
    batch_size: int | None,
    stop: float,
) -> None:
    seen: list[str] = []
    for rank in range(consumers):
        order = {"shuffle": shuffle, "seed": seed, "mix_shards": mix_shards, "batch_size": batch_size}
        one = feed(small, subset, rank=rank, world_size=consumers, **order)
        one.set_epoch(epoch)
        whole = rows_of(one)
        items = -(-len(whole) // (batch_size or 1))
        first, steps = [], iter(one)
        for _ in range(int(stop * items)):
            item = next(steps)["row_id"]
            first += item if batch_size else [item]
        state = one.state_dict()
        steps.close()  # type: ignore[attr-defined]
        other = feed(small, subset, rank=rank, world_size=consumers, **order)
        other.load_state_dict(state)
        rest = rows_of(other) if int(stop * items) < items else []
        assert first + rest == whole
        seen += whole
        assert abs(len(whole) - one.num_rows) <= 0
    assert len(seen) == len(set(seen))
    if subset is None:
        assert len(seen) == sum(feed(small, None, columns=("status",))._rows.shards.counts)
    else:
        assert sorted(seen) == sorted(expected[subset])


@given(st.integers(1, 9))
@settings(deadline=None, max_examples=9, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_even_shares_have_equal_lengths_and_no_repeated_rows(small: Path, consumers: int) -> None:
    parts = [rows_of(feed(small, even=True, rank=rank, world_size=consumers)) for rank in range(consumers)]
    assert {len(part) for part in parts} == {113 // consumers}
    assert len({row for part in parts for row in part}) == sum(map(len, parts))


def test_each_epoch_and_seed_has_its_own_order(small: Path) -> None:
    def order(seed: int, epoch: int) -> tuple[str, ...]:
        dataset = feed(small, seed=seed)
        dataset.set_epoch(epoch)
        return tuple(rows_of(dataset))

    orders = {(seed, epoch): order(seed, epoch) for seed in range(2) for epoch in range(3)}
    assert len(set(orders.values())) == 6
    assert order(1, 2) == orders[1, 2]
    assert rows_of(feed(small, shuffle=False)) == row_ids(small, "some")


@pytest.mark.parametrize("epoch", [-1, 1 << 63])
def test_an_impossible_epoch_is_refused_at_once(small: Path, epoch: int) -> None:
    with pytest.raises(FeedError, match=f"epochs are counted from 0; there is no epoch {epoch}"):
        feed(small).set_epoch(epoch)


def test_an_epoch_is_an_integer(small: Path) -> None:
    with pytest.raises(TypeError, match="integer"):
        feed(small).set_epoch(1.5)  # type: ignore[arg-type]


INTEGERS = ("seed", "mix_shards", "batch_size", "threads", "rank", "world_size")


def test_numbers_from_numpy_give_the_same_rows_and_a_checkpoint_that_json_can_save(small: Path) -> None:
    """A seed of type int64 used to end the first loop with an OverflowError."""
    numbers = {name: 0 if name == "rank" else 2 for name in INTEGERS}
    for kind in (np.int64, np.uint8):
        plain, pairs = feed(small, **numbers), feed(small, **{name: kind(number) for name, number in numbers.items()})
        assert json.loads(json.dumps(pairs.state_dict())) == plain.state_dict()
        assert [row for batch in pairs for row in batch["uid"]] == [row for batch in plain for row in batch["uid"]]


@pytest.mark.parametrize(
    ("name", "value"),
    [*product(INTEGERS, (2.0, "2")), *((name, None) for name in ("seed", "mix_shards", "threads"))],
)
def test_a_number_of_another_type_is_refused_by_name(small: Path, name: str, value: Any) -> None:
    with pytest.raises(FeedError, match=f"{name} must be an integer, not {value!r}"):
        feed(small, **{name: value})


def test_the_columns_can_be_any_iterable_or_one_name(small: Path) -> None:
    """The characters of a name used to be taken for columns, and a generator for none."""
    for columns in ("width", ["width", "width"], (name for name in ["width"]), {"width": 1}):
        pairs = PairDataset(FeedConfig(str(small), columns=columns))
        assert list(next(iter(pairs))) == ["uid", "width"]


def test_neighboring_rows_come_from_several_shards(small: Path) -> None:
    rows = rows_of(feed(small, mix_shards=4))
    shards = [row.partition(":")[0] for row in rows]
    assert len(set(shards[:10])) > 2


def test_batches_have_tensors_of_numbers_with_nan_for_null(dataset: Path) -> None:
    for batch in feed(dataset, None, batch_size=4_096):
        assert batch["similarity"].shape == (len(batch["row_id"]),)
        assert batch["width"].dtype == torch.int32
        if batch["similarity"].isnan().any():
            break
    else:
        raise AssertionError("no batch has a null similarity, although one in a thousand is null")


def test_a_checkpoint_of_a_different_run_is_refused(small: Path) -> None:
    state = feed(small).state_dict()
    with pytest.raises(FeedError, match="seed was 0, now it is 1"):
        feed(small, seed=1).load_state_dict(state)
    with pytest.raises(FeedError, match="subset was"):
        feed(small, "one").load_state_dict(state)
    with pytest.raises(FeedError, match="consumer 0 of 1, not to 1 of 2"):
        feed(small, rank=1, world_size=2).load_state_dict(state)


def test_a_subset_keeps_its_added_models_and_checkpoints_when_the_dataset_grows(tmp_path: Path) -> None:
    own = tmp_path / "own"
    write_dataset(own, 200, shard_rows=40)
    add_columns(own, "extra", range(5))
    make_subset(own, "some")
    columns = ("row_id", "similarity_extra")
    rows = list(feed(own, columns=columns))
    stopped = feed(own, columns=columns)
    start = [row for _, row in zip(range(7), stopped, strict=False)]
    write_dataset(own, 300, shard_rows=40)
    continued = feed(own, columns=columns)
    continued.load_state_dict(stopped.state_dict())
    assert [*start, *continued] == rows
    with pytest.raises(FeedError, match="'similarity_extra': some shards lack the model 'extra'; run: pairmill embed"):
        feed(own, None, columns=columns)


def test_a_checkpoint_stays_valid_after_the_dataset_grows(tmp_path: Path) -> None:
    write_dataset(tmp_path / "own", 300, shard_rows=40)
    make_subset(tmp_path / "own", "some", {"top": {"by": "similarity", "count": 113}})
    stopped = feed(tmp_path / "own")
    whole, samples = rows_of(feed(tmp_path / "own")), iter(stopped)
    seen = [next(samples)["row_id"] for _ in range(50)]
    write_dataset(tmp_path / "own", 900, shard_rows=40)  # more shards without selected rows
    resumed = feed(tmp_path / "own")
    resumed.load_state_dict(stopped.state_dict())
    assert seen + rows_of(resumed) == whole


def test_a_checkpoint_without_a_subset_is_refused_after_the_dataset_grows(tmp_path: Path) -> None:
    write_dataset(tmp_path / "own", 300, shard_rows=40)
    state = feed(tmp_path / "own", None).state_dict()
    write_dataset(tmp_path / "own", 340, shard_rows=40)
    with pytest.raises(FeedError, match="subset was"):
        feed(tmp_path / "own", None).load_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, None])
def test_anything_that_is_not_a_checkpoint_is_refused(small: Path, state: Any) -> None:
    with pytest.raises(FeedError, match="not a checkpoint"):
        feed(small).load_state_dict(state)


def test_a_rank_outside_its_world_is_refused(small: Path) -> None:
    with pytest.raises(FeedError, match="rank 3 does not exist in a world of 2"):
        feed(small, rank=3, world_size=2)


def test_an_unknown_column_or_subset_is_refused_at_once(small: Path) -> None:
    with pytest.raises(FeedError, match="no column 'no_such'"):
        feed(small, columns=("no_such",))
    with pytest.raises(SubsetError, match="has no subset 'nothing'"):
        feed(small, "nothing")


def test_a_subset_with_a_rebuilt_shard_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "own", 200, shard_rows=40)
    make_subset(tmp_path / "own", "some")
    manifest = tmp_path / "own/manifests/000000001.json"
    record = json.loads(manifest.read_text())
    record["files"]["pairs"]["blake2b"] = "0" * 32
    manifest.write_text(json.dumps(record))
    with pytest.raises(SubsetError, match="shard 000000001 was rebuilt after 'some' was made"):
        feed(tmp_path / "own", "some")


def test_a_shard_rebuilt_while_it_is_fed_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    write_dataset(tmp_path / "own", 200, shard_rows=40)
    make_subset(tmp_path / "own", "some")
    opened = feed(tmp_path / "own", "some")
    (tmp_path / "own/pairs/000000001.parquet").unlink()  # as a retry does with superseded files
    with pytest.raises(FeedError, match=r"000000001\.parquet is missing; if a retry or purge has rebuilt its shard"):
        rows_of(opened)


def test_shards_newer_than_the_subset_are_not_fed(tmp_path: Path) -> None:
    write_dataset(tmp_path / "own", 200, shard_rows=40)
    make_subset(tmp_path / "own", "some")
    before = sorted(rows_of(feed(tmp_path / "own")))
    write_dataset(tmp_path / "own", 300, shard_rows=40)
    assert sorted(rows_of(feed(tmp_path / "own"))) == before
    rows = feed(tmp_path / "own")._rows
    assert isinstance(rows, DatasetRows)
    assert np.array_equal(rows.shards.counts[-2:], [0, 0])
