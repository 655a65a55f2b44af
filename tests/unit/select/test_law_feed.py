"""Invariant of PairDataset: with any loader, and no matter where the previous loop was left, each epoch has every pair
once, in an order of its own; `len()` is correct; and ranks never wait for each other forever.
"""

import math
import pickle
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, timedelta
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pairmill.pipeline.feed.batches import item, texts_of, values_of
from pairmill.pipeline.feed.epoch_order import Batches, EpochOrder
from pairmill.pipeline.feed.pair_dataset import FeedConfig, FeedError, PairDataset
from tests.fed_dataset import ROWS, feed, rows_in, write_fed
from tests.unit.select.conftest import row_ids


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fed(tmp_path_factory.mktemp("feed") / "small")


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=8),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 12),
    st.booleans(),
    st.booleans(),
)
def test_workers_get_whole_batches_and_all_ranks_together_get_every_row_once(
    counts: list[int], ranks: int, workers: int, size: int, drop_last: bool, even: bool
) -> None:
    """The oracle cuts each rank's rows into slices, as if the rank had a single worker."""
    import numpy as np

    order, batches = EpochOrder(even, np.array(counts, np.int64), True, 0, 2), Batches(size, drop_last)
    seen: Counter[int] = Counter()
    for rank in range(ranks):
        rows = order.share(rank, ranks)
        expected = [rows[start : start + size] for start in range(0, len(rows), size)]
        expected = [batch for batch in expected if len(batch) == size or not drop_last]
        shares = [order.worker_share(rows, worker, workers, batches) for worker in range(workers)]
        found = [share[start : start + size] for share in shares for start in range(0, len(share), size)]
        assert found == expected
        assert len(found) == batches.count(len(rows))
        seen.update(row for batch in found for row in batch)
    assert max(seen.values(), default=1) == 1
    left_out = sum(counts) - len(seen)
    assert left_out <= (ranks - 1 if even else 0) + (ranks * (size - 1) if drop_last else 0)
    if even:
        assert len({len(order.share(rank, ranks)) for rank in range(ranks)}) == 1


@given(st.lists(st.sampled_from(["next", "next", "next", "loop", "set_epoch", "save", "load"]), max_size=30), st.data())
def test_without_workers_a_loop_continues_where_the_last_one_was_left_and_ends_it(
    dataset: Path, steps: list[str], data: st.DataObject
) -> None:
    """The oracle is the order of each epoch, from which each loop takes the batches after those taken before. A
    checkpoint from the end of an epoch does not undo `set_epoch`."""
    pairs = feed(dataset, batch_size=40)
    newest, loops = 0, [iter(pairs)]
    left: dict[int, list[list[str]]] = {}
    epoch, is_set, done, is_counting, saved = 0, False, 0, False, pairs.state_dict()
    for step in steps:
        if step == "loop":
            loops.append(iter(pairs))
        elif step == "set_epoch":
            epoch, is_set, done, is_counting = (epoch + 1) % 2, True, 0, False
            pairs.set_epoch(epoch)
        elif step == "save":
            saved = pairs.state_dict()
        elif step == "load":
            pairs.load_state_dict(saved)
            is_last = saved["rows_done"] == ROWS and saved["epoch"] != epoch
            if is_set and (saved["is_over"] or is_last):
                done = 0
            else:
                epoch, is_set, done = saved["epoch"], False, -(-saved["rows_done"] // 40)
            is_counting = False
        else:
            number = data.draw(st.integers(max(0, len(loops) - 3), len(loops) - 1))
            if number not in left:
                newest, is_counting, is_set = number, True, False
                left[number] = list(batches_of(dataset, epoch)[done:])
            if left[number] and number != newest:
                with pytest.raises(FeedError, match="ended when a newer loop"):
                    next(loops[number])
                left[number].clear()
            elif left[number]:
                assert next(loops[number])["row_id"] == left[number].pop(0)
                done += is_counting
            else:
                assert next(loops[number], None) is None
                done *= number != newest or not is_counting
                is_counting &= number != newest
        state = pairs.state_dict()
        assert (state["epoch"], state["rows_done"]) == (epoch, min(40 * done, ROWS))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # from a call inside torchdata
@given(
    st.integers(10, 60),
    st.booleans(),
    st.integers(0, 3),
    st.booleans(),
    st.none() | st.integers(2, 4),
    st.booleans(),
)
def test_a_checkpoint_from_the_end_of_an_epoch_starts_the_epoch_that_was_set(
    dataset: Path, size: int, drop_last: bool, num_left: int, is_left: bool, epoch: int | None, is_set_first: bool
) -> None:
    """A StatefulDataLoader loads it only when its loop begins, after `set_epoch`, which it used to undo (similar to
    VeOmni#853). Without `set_epoch`, the loop repeats an epoch that has ended. Oracle: loops of a new dataset."""

    def loader() -> Any:
        return StatefulDataLoader(feed(dataset, batch_size=size, drop_last=drop_last), batch_size=None)

    def fresh(epoch: int) -> list[list[str]]:
        pairs = feed(dataset, batch_size=size, drop_last=drop_last)
        pairs.set_epoch(epoch)
        return [batch["row_id"] for batch in pairs]

    saved = loader()
    saved.dataset.set_epoch(3)
    batches = iter(saved)
    taken = max(0, len(saved.dataset) - num_left)
    assert len(list(islice(batches, taken))) == taken
    is_at_end = taken == len(saved.dataset)
    if is_over := is_left and is_at_end:
        assert next(batches, None) is None
    resumed, state = loader(), saved.state_dict()
    steps = [lambda: resumed.load_state_dict(state)]
    if epoch is not None:
        steps.insert(not is_set_first, lambda: resumed.dataset.set_epoch(epoch))
    for step in steps:
        step()
    expected = fresh(3)[0 if is_over else taken :]
    if epoch is not None and is_at_end and (is_over or epoch != 3):
        expected = fresh(epoch)
    assert [batch["row_id"] for batch in resumed] == expected
    now = resumed.dataset.epoch
    assert now == (epoch if epoch is not None and is_at_end else 3)
    assert [batch["row_id"] for batch in resumed] == fresh(now)


def test_a_checkpoint_undoes_set_epoch_also_for_the_next_checkpoint(dataset: Path) -> None:
    ended, pairs = feed(dataset, batch_size=40), feed(dataset, batch_size=40)
    list(ended)
    end = ended.state_dict()
    ended.set_epoch(3)
    next(iter(ended))
    pairs.set_epoch(4)
    pairs.load_state_dict(ended.state_dict())
    pairs.load_state_dict(end)
    assert [batch["row_id"] for batch in pairs] == batches_of(dataset, 0)


@pytest.mark.parametrize("is_left", [False, True])
def test_an_epoch_that_was_set_is_not_over_after_a_checkpoint_from_the_end_of_another(
    dataset: Path, is_left: bool
) -> None:
    ended, pairs, expected = (feed(dataset) for _ in range(3))
    ended.set_epoch(3)
    batches = iter(ended)
    assert len(list(islice(batches, len(ended)))) == len(ended)
    assert not is_left or next(batches, None) is None
    for each in (pairs, expected):
        each.set_epoch(0)
    pairs.load_state_dict(ended.state_dict())
    assert pairs.state_dict() == expected.state_dict()


def test_a_checkpoint_from_the_end_of_an_epoch_replaces_an_epoch_whose_loop_has_begun(dataset: Path) -> None:
    pairs = feed(dataset, batch_size=40)
    list(pairs)
    end = pairs.state_dict()
    pairs.set_epoch(1)
    next(iter(pairs))
    pairs.load_state_dict(end)
    assert [batch["row_id"] for batch in pairs] == batches_of(dataset, 0)


@cache
def batches_of(dataset: Path, epoch: int) -> list[list[str]]:
    pairs = feed(dataset, batch_size=40)
    pairs.set_epoch(epoch)
    found = [batch["row_id"] for batch in pairs]
    assert sorted(row for batch in found for row in batch) == sorted(row_ids(dataset, "some"))
    return found


def test_nested_and_parallel_loops_over_one_dataset_are_an_error_and_loops_left_early_are_not(dataset: Path) -> None:
    loader = DataLoader(feed(dataset), batch_size=None)
    for parallel in (lambda: zip(loader, loader, strict=True), lambda: ((a, b) for a in loader for b in loader)):
        with pytest.raises(FeedError, match="create two PairDatasets"):
            list(parallel())
        loader.dataset.set_epoch(0)
    seen = [row for _ in range(3) for row in rows_in(islice(loader, 4))]
    assert sorted(seen + rows_in(loader)) == sorted(row_ids(dataset, "some"))


def test_a_checkpoint_from_an_earlier_version_resumes_with_the_shares_of_that_version(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a checkpoint has no `batch_size`: the workers of a rank divided its rows rather than its batches."""
    whole = rows_in(feed(dataset))
    seen = []
    for worker in range(2):
        info = type("Info", (), {"num_workers": 2, "id": worker})
        monkeypatch.setattr("pairmill.pipeline.feed.pair_dataset.get_worker_info", lambda info=info: info)
        pairs = feed(dataset)
        state = {k: v for k, v in pairs.state_dict().items() if k not in ("batch_size", "drop_last")}
        pairs.load_state_dict({**state, "rows_done": 16})
        seen.append(rows_in(pairs))
        assert rows_in(pairs) != seen[-1]  # the next loop uses the shares of the current version
    half = ROWS // 2
    assert seen == [whole[16:half], whole[half + 16 :]]


def test_a_checkpoint_with_a_different_batch_size_is_refused_if_workers_share_the_batches(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = feed(dataset).state_dict()
    feed(dataset, batch_size=5).load_state_dict(one)
    info = type("Info", (), {"num_workers": 2, "id": 0})
    monkeypatch.setattr("pairmill.pipeline.feed.pair_dataset.get_worker_info", lambda: info)
    several = feed(dataset).state_dict()
    with pytest.raises(FeedError, match="batch_size was 8, now it is 5"):
        feed(dataset, batch_size=5).load_state_dict(several)


@pytest.fixture
def two_ranks() -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    distributed.destroy_process_group()


def test_ranks_with_different_numbers_of_batches_are_an_error_before_they_wait(dataset: Path, two_ranks: None) -> None:
    """113 rows are split into 56 and 57, which make 7 and 8 batches of 8."""
    with pytest.raises(FeedError, match=r"ranks would have 7 or 8 batches.*set even=True"):
        feed(dataset, rank=0, world_size=2)
    with pytest.raises(FeedError, match="ranks would have 56 or 57 rows"):
        feed(dataset, batch_size=None, rank=1, world_size=2)
    for fine in ({"even": True}, {"allow_uneven": True}, {"batch_size": 10}, {"drop_last": True}):
        assert len(feed(dataset, rank=0, world_size=2, **fine)) > 0


def test_the_ranks_are_checked_again_when_torch_distributed_starts_later(
    dataset: Path, request: pytest.FixtureRequest
) -> None:
    pairs = feed(dataset, rank=0, world_size=2)
    assert len(pairs) == len(list(pairs)) == 7
    request.getfixturevalue("two_ranks")
    with pytest.raises(FeedError, match="set even=True"):
        pairs.set_epoch(1)
    with pytest.raises(FeedError, match="set even=True"):
        next(iter(pairs))


def test_a_dataset_without_a_rank_that_was_created_before_torch_distributed_is_refused_later(
    dataset: Path, request: pytest.FixtureRequest
) -> None:
    early, explicit = feed(dataset), feed(dataset, rank=0, world_size=1)
    with pytest.raises(FeedError, match="set both rank and world_size"):
        feed(dataset, world_size=2)
    request.getfixturevalue("two_ranks")
    for serve in (lambda: early.set_epoch(1), lambda: iter(early), lambda: pickle.dumps(early)):
        with pytest.raises(FeedError, match="distributed runs with several ranks"):
            serve()
    assert pickle.dumps(explicit) and len(list(explicit)) == len(explicit) == 15


def test_drop_last_needs_batches(dataset: Path) -> None:
    with pytest.raises(FeedError, match="drop_last needs a batch_size"):
        feed(dataset, batch_size=None, drop_last=True)


@given(st.lists(st.none() | st.text(" \t\u00a0aé", max_size=3), max_size=5))
def test_a_tokenizer_gets_all_captions_unchanged_or_none_at_all(captions: list[str | None]) -> None:
    if all(caption and not caption.isspace() for caption in captions):
        assert texts_of("caption", captions) == captions
    else:
        with pytest.raises(FeedError, match="no text in 'caption': use a subset"):
            texts_of("caption", captions)


def test_a_tokenizer_is_never_given_a_caption_that_an_export_would_refuse(dataset: Path) -> None:
    def fed(column: str) -> list[str]:
        given: list[str] = []
        config = FeedConfig(str(dataset), "some", columns=(column,), batch_size=8)
        list(PairDataset(config, tokenizer=lambda texts: given.extend(texts) or torch.zeros(len(texts))))
        return given

    assert len(fed("caption")) == ROWS
    with pytest.raises(FeedError, match="8 of 8 rows have no text in 'caption_clean'"):
        fed("caption_clean")


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]


@given(st.data())
def test_integers_arrive_exactly_with_and_without_nulls(data: st.DataObject) -> None:
    """As float64, 2^53 + 1 would become 2^53 (pandas#56678, datasets#8365)."""
    kind = data.draw(st.sampled_from(INTEGERS))
    signed, bits = pa.types.is_signed_integer(kind), kind.bit_width
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    values = data.draw(st.lists(st.none() | st.integers(least, most) | st.sampled_from([least, most]), max_size=5))
    found = values_of(pa.array(values, kind))
    rows = [item(found, row) for row in range(len(values))]
    assert len(rows) == len(found)
    for value, row in zip(values, rows, strict=True):
        assert row == value if value is not None else row is None or math.isnan(row)


@given(st.lists(st.none() | st.integers(-(1 << 31), (1 << 31) - 1), min_size=1, max_size=4))
def test_dates_and_times_of_any_year_and_unit_arrive_intact(numbers: list[int | None]) -> None:
    """Python has neither years after 9999 nor nanoseconds. Such values arrive as text, as Arrow or DuckDB writes it."""
    nanoseconds = pa.array([None if each is None else abs(each) for each in numbers], pa.time64("ns"))
    for array in (pa.array(numbers, pa.date32()), pa.array(numbers, pa.timestamp("s")), nanoseconds):
        plain = list(values_of(array))
        text = [value if value is None or isinstance(value, str) else str(value) for value in plain]
        if any(isinstance(value, str) for value in plain):
            assert text == array.cast(pa.string()).to_pylist()
        else:
            assert pa.array(plain, array.type).equals(array)
        for nested in (pa.ListArray.from_arrays(list(range(len(numbers) + 1)), array),):
            assert [value[0] for value in values_of(nested)] == plain


ELEMENTS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    *((kind, st.integers(0, 127)) for kind in INTEGERS),
    (pa.int64(), st.sampled_from([2**53 + 1, -(2**53) - 1, 5])),
    (pa.float16(), st.sampled_from([0.5, -2.0])),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(max_size=3)),
    (pa.binary(), st.binary(max_size=3)),
    (pa.decimal128(9, 2), st.decimals(-100, 100, places=2)),
    (pa.date32(), st.dates()),
    (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
    (pa.duration("us"), st.timedeltas(timedelta(-9), timedelta(9))),
    (pa.null(), st.none()),
    (pa.list_(pa.int8()), st.lists(st.integers(0, 9), max_size=2)),
    (pa.list_(pa.float32(), 2), st.just([1.0, 2.0])),
]


@given(st.data(), st.sampled_from(ELEMENTS), st.integers(0, 3))
def test_vectors_of_any_type_arrive_with_their_values_and_no_others_in_place_of_nulls(
    data: st.DataObject, element: tuple[pa.DataType, st.SearchStrategy[Any]], size: int
) -> None:
    """Where NumPy has no null, it makes numbers up, such as -2^63 (arrow#26482, datasets#8432). Whether the values are
    a tensor or a list, they are those of `to_pylist`, with NaN or None for null."""
    kind, values = element[0], st.none() | element[1]
    vectors = st.none() | st.lists(values, min_size=size, max_size=size)
    column = pa.array(data.draw(st.lists(vectors, max_size=5)), pa.list_(kind, size))
    column = column.slice(data.draw(st.integers(0, len(column))))
    expected = [[None] * size if vector is None else vector for vector in column.to_pylist()]
    found = values_of(column)
    if not isinstance(found, torch.Tensor):
        assert found == column.to_pylist()
        return
    assert found.shape == (len(column), size) and (pa.types.is_integer(kind) or pa.types.is_floating(kind))
    assert [[None if x != x else x for x in vector] for vector in found.tolist()] == expected


@pytest.mark.parametrize("vectors", [[[2**53 + 1, None], [1, 2]], [[2**53 + 1, 1], None]])
def test_vectors_of_integers_that_a_float_cannot_hold_arrive_exactly_beside_a_null(vectors: list[Any]) -> None:
    assert values_of(pa.array(vectors, pa.list_(pa.int64(), 2))) == vectors
