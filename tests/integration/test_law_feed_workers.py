"""Invariant of PairDataset with the workers of a loader, and in the processes of torch.distributed: each epoch has
every pair once, in an order of its own, no matter where the previous loop was left; and `len()` is correct.

These workers are forked, so the tests run in a process without other threads.
"""

import json
import multiprocessing
import pickle
import traceback
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pairmill.pipeline.feed import mixture_rows
from pairmill.pipeline.feed.pair_dataset import FeedConfig, FeedError, PairDataset
from tests.fed_dataset import ROWS, feed, rows_in, write_fed
from tests.unit.select.conftest import row_ids
from tests.unit.select.test_law_mixture import mixed, write

pytestmark = [
    pytest.mark.forks,
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # from a call inside torchdata
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fed(tmp_path_factory.mktemp("feed") / "small")


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 2)])
def test_the_torch_loader_divides_the_rows_among_its_workers(dataset: Path, ranks: int, workers: int) -> None:
    seen = []
    for rank in range(ranks):
        pairs = feed(dataset, batch_size=None, columns=("row_id", "similarity"), rank=rank, world_size=ranks)
        for batch in DataLoader(pairs, batch_size=8, num_workers=workers):
            assert batch["similarity"].dtype in (torch.float32, torch.float64)
            seen += batch["row_id"]
    assert sorted(seen) == sorted(row_ids(dataset, "some"))


@pytest.mark.parametrize(("taken", "persistent"), [(0, True), (1, True), (7, False), (22, False)])
def test_the_torchdata_loader_resumes_within_an_epoch_with_workers(dataset: Path, taken: int, persistent: bool) -> None:
    """Like a dataset without workers, it then repeats the epoch until `set_epoch` is called."""

    def loader() -> tuple[PairDataset, StatefulDataLoader[Any]]:
        pairs = feed(dataset, batch_size=5)
        return pairs, StatefulDataLoader(pairs, batch_size=None, num_workers=2, persistent_workers=persistent)

    pairs, first = loader()
    if persistent:
        assert len(list(first)) == len(pairs)
    pairs.set_epoch(1)
    batches = iter(first)
    seen = rows_in(islice(batches, taken))
    state = first.state_dict()
    del batches
    pairs, second = loader()
    second.load_state_dict(state)
    seen += rows_in(second)
    assert pairs.epoch == 1
    assert seen == rows_in(second)
    assert sorted(seen) == sorted(row_ids(dataset, "some"))


def test_neither_a_batch_read_before_nor_a_parallel_loop_takes_anything_from_workers(dataset: Path) -> None:
    pairs = feed(dataset, batch_size=5)
    next(iter(pairs))
    loader = DataLoader(pairs, batch_size=None, num_workers=1)
    for batches in zip(*zip(loader, loader, strict=True), strict=True):
        assert sorted(rows_in(batches)) == sorted(row_ids(dataset, "some"))


def test_a_checkpoint_loaded_outside_the_workers_is_refused(dataset: Path) -> None:
    pairs = feed(dataset, batch_size=5)
    samples = iter(pairs)
    next(samples)
    resumed = feed(dataset, batch_size=5)
    resumed.load_state_dict(pairs.state_dict())
    with pytest.raises(FeedError, match="StatefulDataLoader") as refused:
        list(DataLoader(resumed, batch_size=None, num_workers=2))
    traceback.clear_frames(refused.tb)  # its frames hold a loader that would take ten seconds to free


@pytest.mark.parametrize("loader_of", [DataLoader, StatefulDataLoader])
def test_set_epoch_takes_effect_in_persistent_workers_and_a_loop_left_early_takes_no_rows_from_the_next(
    dataset: Path, loader_of: Any
) -> None:
    pairs = feed(dataset)
    loader = loader_of(pairs, batch_size=None, num_workers=2, persistent_workers=True)
    orders = []
    for epoch, taken in ((0, None), (1, 3), (2, None), (2, 1), (2, None), (3, None)):
        pairs.set_epoch(epoch)
        seen = rows_in(islice(loader, taken))
        if taken is None:
            assert sorted(seen) == sorted(row_ids(dataset, "some"))
            orders.append(tuple(seen))
    assert orders[1] == orders[2]
    assert len(set(orders)) == 3
    next(iter(loader))
    assert sorted(rows_in(loader)) == sorted(row_ids(dataset, "some"))  # without another call of set_epoch


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_length_of_a_loader_is_its_number_of_batches_and_at_most_one_is_short(
    dataset: Path, workers: int, drop_last: bool
) -> None:
    loader = DataLoader(feed(dataset, drop_last=drop_last), batch_size=None, num_workers=workers)
    sizes = [len(batch["row_id"]) for batch in loader]
    assert len(loader) == len(sizes) == (ROWS // 8 if drop_last else -(-ROWS // 8))
    assert Counter(sizes) == ({8: ROWS // 8} if drop_last else {8: ROWS // 8, ROWS % 8: 1})


def test_without_batches_len_is_the_number_of_rows_of_a_rank(dataset: Path) -> None:
    for even, rank, workers, rows in ((False, 0, 2, 56), (False, 1, 0, 57), (True, 0, 0, 56), (True, 1, 2, 56)):
        pairs = feed(dataset, batch_size=None, rank=rank, world_size=2, even=even)
        loader = DataLoader(pairs, batch_size=None, num_workers=workers)
        assert len(list(loader)) == len(loader) == len(pairs) == rows


def test_set_epoch_on_a_pickled_copy_reaches_the_workers_of_the_copy(dataset: Path) -> None:
    """A scheduler that starts a trainer on another machine sends it such a pickled copy."""
    pairs = pickle.loads(pickle.dumps(feed(dataset)))  # noqa: S301
    loader = DataLoader(pairs, batch_size=None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in range(2):
        pairs.set_epoch(epoch)
        orders.append(rows_in(loader))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_checkpoint_survives_set_epoch_for_its_own_epoch_with_a_stateful_loader(dataset: Path, workers: int) -> None:
    """When a trainer resumes, it calls `load_state_dict` and then `set_epoch` at the top of its loop."""

    def loader(pairs: PairDataset) -> Any:
        return StatefulDataLoader(pairs, batch_size=None, num_workers=workers)

    pairs = feed(dataset)
    first = loader(pairs)
    pairs.set_epoch(5)
    batches = iter(first)
    seen = rows_in(islice(batches, 6))
    state = first.state_dict()
    del batches
    pairs = feed(dataset)
    second = loader(pairs)
    second.load_state_dict(state)
    pairs.set_epoch(5)
    assert sorted(seen + rows_in(second)) == sorted(row_ids(dataset, "some"))
    pairs.set_epoch(6)
    assert sorted(rows_in(second)) == sorted(row_ids(dataset, "some"))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_epoch_after_a_checkpoint_from_the_end_of_one_is_the_same_with_and_without_workers(
    dataset: Path, workers: int
) -> None:
    def loader() -> Any:
        return StatefulDataLoader(feed(dataset), batch_size=None, num_workers=workers)

    saved = loader()
    list(saved)
    resumed = loader()
    resumed.load_state_dict(saved.state_dict())
    resumed.dataset.set_epoch(1)
    fresh = feed(dataset)
    fresh.set_epoch(1)
    assert rows_in(resumed) == rows_in(fresh)


def test_after_a_checkpoint_from_the_last_batch_workers_end_its_loop_and_then_start_the_epoch_that_was_set(
    dataset: Path,
) -> None:
    """A worker that has finished cannot tell whether the others have too."""
    pairs, resumed = feed(dataset), feed(dataset)
    saved, loader = (StatefulDataLoader(each, batch_size=None, num_workers=2) for each in (pairs, resumed))
    batches = iter(saved)
    list(islice(batches, len(pairs)))
    loader.load_state_dict(saved.state_dict())
    resumed.set_epoch(1)
    pairs.set_epoch(1)
    assert [rows_in(loader) for _ in range(2)] == [[], rows_in(saved)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize(("stop", "batch_size"), [(15, 8), (16, None)])
def test_a_checkpoint_repeats_no_rows_of_workers_that_had_finished(
    dataset: Path, stop: int, batch_size: int | None
) -> None:
    """Three workers have 5, 5 and 6 of the 16 batches. The loader knows that a worker has finished while others still
    have batches."""

    def loader() -> Any:
        return StatefulDataLoader(feed(dataset, batch_size=batch_size, subset="many"), batch_size=None, num_workers=3)

    def rows(batches: Any) -> list[str]:
        return [row for batch in batches for row in (batch["row_id"] if batch_size else [batch["row_id"]])]

    first = loader()
    batches = iter(first)
    seen = rows(islice(batches, stop if batch_size else stop + 128 - 16))
    state = first.state_dict()
    del batches
    second = loader()
    second.load_state_dict(state)
    seen += rows(second)
    assert sorted(seen) == sorted(row_ids(dataset, "many"))
    assert rows(second) == seen  # the next loop has all rows again


def _write_share(dataset: Path, folder: Path, rank: int) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    with pytest.raises(FeedError, match="distributed runs with several ranks"):
        feed(dataset)
    pairs = feed(dataset, batch_size=10, rank=distributed.get_rank(), world_size=distributed.get_world_size())
    rows = [rows_in(each) for each in (pairs, DataLoader(pairs, batch_size=None, num_workers=1))]
    (folder / f"{rank}.json").write_text(json.dumps(rows))


def test_each_rank_of_torch_distributed_gets_a_share_of_its_own_or_an_error(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_write_share, args=(dataset, tmp_path, rank)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    shares = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for share in zip(*shares, strict=True):  # without and with a loader's worker
        assert sorted(chain(*share)) == sorted(row_ids(dataset, "some"))


def test_a_batch_has_the_same_tensors_with_and_without_a_loader(dataset: Path) -> None:
    plain = list(feed(dataset, columns=("similarity",)))
    loaded = list(DataLoader(feed(dataset, columns=("similarity",)), batch_size=None, num_workers=1))
    assert all(torch.equal(one["similarity"], two["similarity"]) for one, two in zip(plain, loaded, strict=True))


def test_the_workers_of_a_loader_divide_the_rows_of_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture_rows, "BLOCK_ROWS", 64)
    folder = write(tmp_path, 150)
    mixed(folder, "mix", count=300)
    config = FeedConfig(folder / "mix", None, (), batch_size=7)
    expected = Counter(uid for batch in PairDataset(config) for uid in batch["uid"])
    loader = DataLoader(PairDataset(config), batch_size=None, num_workers=2)
    assert Counter(uid for batch in loader for uid in batch["uid"]) == expected
    assert expected.total() == 300
