"""Invariant of weights: a row is shown as often as its weight says. In each epoch, the number is rounded, and the total
over all epochs is off by less than one. Ranks, workers and resumed runs together show exactly the rounded number."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pairmill
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_rows, read_subset
from pairmill.pipeline.feed import pair_dataset
from pairmill.pipeline.feed.pair_dataset import FeedConfig, FeedError, PairDataset
from pairmill.pipeline.feed.ranks import check_ranks
from pairmill.pipeline.select.weights import draws_of, times
from tests.synthetic_dataset import default_columns, write_dataset
from tests.unit.select.conftest import make_subset

WEIGHTS = st.lists(st.floats(0, 50, width=32), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows in 8 shards."""
    folder = tmp_path_factory.mktemp("weights")
    write_dataset(folder, 300, shard_rows=40)
    make_subset(folder, "some", {"repeat": {"by": "25 * similarity", "samples": 200}})
    return folder


@given(WEIGHTS, st.integers(0, 2**32 - 1), st.integers(0, 10_000), st.integers(1, 20))
def test_a_row_is_shown_as_often_as_its_weight_says(weights: list[float], draw: int, first: int, epochs: int) -> None:
    given_weights, draws = np.array(weights, np.float32), np.full(len(weights), draw, np.uint32)
    shown = np.stack([times(given_weights, draws, epoch) for epoch in range(first, first + epochs)])
    exact = given_weights.astype(np.float64)
    assert ((np.floor(exact) <= shown) & (shown <= np.ceil(exact))).all()
    assert (np.abs(shown.sum(axis=0) - epochs * exact) < 1 + 1e-6).all()
    assert (shown[:, exact == np.rint(exact)] == exact[exact == np.rint(exact)]).all()


def test_fractions_average_out_over_many_rows_in_each_epoch() -> None:
    """In each epoch, the average number per row is right, within the error of independent coin tosses."""
    draws = draws_of_many(20_000)
    for epoch in (0, 1, 7, 1_000_003):
        for weight in (0.1, 0.5, 2.3):
            mean = times(np.full(20_000, weight, np.float32), draws, epoch).mean()
            assert abs(mean - weight) < 6 * 0.5 / math.sqrt(20_000)


def draws_of_many(rows: int) -> Any:
    return draws_of(pa.chunked_array([[f"{number:032x}" for number in range(rows)]]))


def expected(dataset: Path, epoch: int) -> Counter[str]:
    """How often each uid is shown in an epoch, from the file of the subset."""
    store, found = Store(str(dataset)), Counter[str]()
    for table in read_rows(store, read_subset(store, "some")):
        numbers = times(table["weight"].to_numpy(), draws_of(table["uid"]), epoch).tolist()
        found += Counter(dict(zip(table["uid"].to_pylist(), numbers, strict=True)))
    return found


def resumed(config: FeedConfig, epoch: int, stops: list[int]) -> Iterator[str]:
    """The uids that a consumer gets if it stops after these numbers of batches and resumes from checkpoints."""
    state, done = None, 0
    for stop in [*stops, None]:
        feed = PairDataset(config)
        feed.set_epoch(epoch if state is None else 5)
        if state is not None:
            feed.load_state_dict(state)
        batches = [batch["uid"] for batch in islice(feed, stop)]
        yield from (uid for batch in batches for uid in batch)
        done += sum(map(len, batches))
        if stop is not None and (len(batches) < stop or done == feed.num_rows):
            return  # the epoch has ended, so the next loop would start again, or the epoch that was set
        state = feed.state_dict()


@settings(max_examples=max(1, settings.default.max_examples // 8))
@given(
    epoch=st.integers(0, 4),
    ranks=st.integers(1, 3),
    workers=st.integers(1, 3),
    size=st.integers(1, 40),
    mix=st.integers(1, 4),
    even=st.booleans(),
    stops=st.lists(st.integers(0, 3), max_size=2),
)
@example(epoch=0, ranks=2, workers=1, size=17, mix=1, even=False, stops=[3, 3])  # the last stop is after the last row
def test_all_consumers_together_show_every_row_as_often_as_expected(
    dataset: Path, epoch: int, ranks: int, workers: int, size: int, mix: int, even: bool, stops: list[int]
) -> None:
    seen = Counter[str]()
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(ranks):
            of_rank, length = Counter[str](), 0
            for worker in range(workers):
                info = SimpleNamespace(num_workers=workers, id=worker) if workers > 1 else None
                patch.setattr(pair_dataset, "get_worker_info", lambda info=info: info)
                config = FeedConfig(
                    str(dataset), "some", (), batch_size=size, rank=rank, world_size=ranks, mix_shards=mix, even=even
                )
                of_rank.update(resumed(config, epoch, stops))
                feed = PairDataset(config)
                feed.set_epoch(epoch)
                length = feed.num_rows
            assert of_rank.total() == length
            seen += of_rank
    left_out = expected(dataset, epoch) - seen
    assert not seen - expected(dataset, epoch)
    assert left_out.total() <= (ranks - 1 if even else 0)


def test_the_weights_sum_to_the_requested_number_of_samples(dataset: Path) -> None:
    totals = [expected(dataset, epoch).total() for epoch in range(200)]
    rows = sum(table.num_rows for table in read_rows(Store(str(dataset)), read_subset(Store(str(dataset)), "some")))
    assert abs(sum(totals) - 200 * 200) <= rows
    assert max(abs(total - 200) for total in totals) < 6 * 0.5 * math.sqrt(rows)


def test_each_epoch_has_its_own_order_and_repeated_rows_are_spread_out(dataset: Path) -> None:
    feed = PairDataset(FeedConfig(str(dataset), "some", ()))
    orders = []
    for epoch in range(2):
        feed.set_epoch(epoch)
        orders.append([row["uid"] for row in feed])
        assert len(orders[-1]) == len(feed) == expected(dataset, epoch).total()
    assert orders[0] != orders[1]
    neighbors = sum(one == other for one, other in zip(orders[0], orders[0][1:], strict=False))
    assert neighbors < len(orders[0]) / 10


def test_a_column_called_weight_is_read_beside_the_weights(tmp_path: Path) -> None:
    def columns(shard: int, first: int, count: int, seed: int) -> dict[str, pa.Array]:
        kilograms = pa.array([first + number for number in range(count)], pa.int32())
        return default_columns(shard, first, count, seed) | {"weight": kilograms}

    write_dataset(tmp_path, 60, columns=columns)
    make_subset(tmp_path, "some", {"repeat": {"weight": "0.5 + weight / 60"}})
    subset = pairmill.open(tmp_path).subset("some")
    expected = [0.5 + own / 60 for own in subset.table()["source_weight"].to_pylist()]
    assert subset.table("weight")["weight"].to_pylist() == pytest.approx(expected)
    assert subset.table("source_weight")["source_weight"].type == pa.int32()
    for row in PairDataset(FeedConfig(str(tmp_path), "some", ("weight", "source_weight"))):
        assert row["weight"] == pytest.approx(0.5 + row["source_weight"] / 60)


def test_weighted_subsets_need_even_shares_in_distributed_runs(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds even if this epoch's rows can be divided evenly, because another epoch's rows may not be."""
    monkeypatch.setattr("pairmill.pipeline.feed.ranks.is_distributed", lambda: True)
    with pytest.raises(FeedError, match="set even=True"):
        PairDataset(FeedConfig(str(dataset), "some", (), rank=0, world_size=2))
    PairDataset(FeedConfig(str(dataset), "some", (), rank=0, world_size=2, even=True))
    check_ranks(FeedConfig(str(dataset), rank=0, world_size=2), pair_dataset.Batches(), 8, has_weights=False)
