"""Tests near-duplicate dedup against brute force over all pairs, visiting the rows one by one from the best down."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.image.pdq import MIN_QUALITY
from pairmill.pipeline.known.hash_index import HashIndex, hash_words
from pairmill.pipeline.select import near_compare, near_duplicates, near_join
from pairmill.pipeline.select.hash_keys import Key, choose_keys, plans
from pairmill.pipeline.select.near_greedy import decide, drop_near_new
from pairmill.pipeline.select.near_join import KEPT, NEW, UNDECIDED, Question, near_pairs
from pairmill.pipeline.select.tasks import LocalTasks
from tests.synthetic_dataset import default_columns, hex_digits, write_dataset
from tests.unit.select.conftest import make_subset, row_ids

U64 = npt.NDArray[np.uint64]

WORDS = {"phash": 1, "pdq": 4}


def hashes_with_near_ones(rows: int, words: int, most_flips: int, seed: int) -> U64:
    """Random hashes. Two rows in three are near copies of an earlier row, which may itself be a near copy."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, (rows, words), dtype=np.uint64)
    for row in np.flatnonzero(rng.random(rows) < 0.7).tolist():
        hashes[row] = hashes[rng.integers(0, max(1, row))]
        for bit in rng.integers(0, 64 * words, rng.integers(0, most_flips + 1)).tolist():
            hashes[row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return hashes


def distances(one: U64, others: U64) -> npt.NDArray[np.int64]:
    return np.asarray(np.bitwise_count(one ^ others).sum(axis=-1, dtype=np.int64))


def brute_force(hashes: U64, alone: npt.NDArray[np.bool_], scores: Any, distance: int) -> tuple[list[int], list[int]]:
    """(rows that stay; sizes of the groups that have two or more rows, largest first)."""
    best_first = np.lexsort((np.arange(len(hashes)), -np.nan_to_num(scores, nan=-np.inf)))
    first_of = dict[bytes, int]()  # first, the best of the rows with equal hashes represents them all
    copies, alone = dict[int, int](), alone.copy()
    for row in best_first.tolist():
        first = first_of.setdefault(hashes[row].tobytes(), row)
        copies[first] = copies.get(first, 0) + 1
        alone[first] |= alone[row]
    kept, sizes = list[int](), dict[int, int]()
    for row in copies:
        near = np.flatnonzero(distances(hashes[row], hashes[kept]) <= distance).tolist() if kept else []
        owner = next((kept[at] for at in near if not alone[row] and not alone[kept[at]]), None)
        if owner is None:
            kept.append(row)
        sizes[row if owner is None else owner] = sizes.get(row if owner is None else owner, 0) + copies[row]
    return sorted(kept), sorted((size for size in sizes.values() if size > 1), reverse=True)


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rows in four shards, with distinct uids, many near hashes, some nulls and some low qualities."""
    folder, rows = tmp_path_factory.mktemp("hashed"), 2_000
    rng = np.random.default_rng(3)
    no_hash = pa.array(rng.random(rows) < 0.02)
    columns = {
        "uid": pa.array([f"{row:032x}" for row in range(rows)]),
        "phash": pc.if_else(no_hash, None, hex_digits(hashes_with_near_ones(rows, 1, 7, seed=1))),
        "pdq": pc.if_else(no_hash, None, hex_digits(hashes_with_near_ones(rows, 4, 40, seed=2))),
        "pdq_quality": pa.array(rng.integers(30, 101, rows).astype(np.uint8), mask=rng.random(rows) < 0.03),
        "similarity": pa.array(rng.integers(0, 50, rows) / 100, pa.float32(), mask=rng.random(rows) < 0.02),
    }

    def of_shard(shard: int, first: int, some: int, seed: int) -> dict[str, pa.Array]:
        own = {name: column.slice(first, some) for name, column in columns.items()}
        return {**default_columns(shard, first, some, seed), **own}

    write_dataset(folder, rows, shard_rows=500, columns=of_shard)
    return folder


def rows_of(folder: Path) -> dict[str, object]:
    table = pa.concat_tables(pq.ParquetFile(path).read() for path in sorted(folder.glob("pairs/*.parquet")))
    return {name: table[name].to_pylist() for name in ("row_id", "phash", "pdq", "pdq_quality", "similarity")}


@pytest.mark.parametrize(
    ("by", "distance", "best"),
    [
        ("phash", 1, None),
        ("phash", 4, "similarity"),
        ("phash", 8, None),
        ("phash", 8, "similarity"),
        ("pdq", 10, None),
        ("pdq", 31, "similarity"),
    ],
)
def test_a_dedup_with_a_distance_equals_brute_force(hashed: Path, by: str, distance: int, best: str | None) -> None:
    step = {"dedup": {"by": by, "distance": distance} | ({"best": best} if best else {})}
    subset = make_subset(hashed, "near", step, rows="pairs")
    values = rows_of(hashed)
    at = [row for row, value in enumerate(values[by]) if value is not None]
    cuts = range(0, 16 * WORDS[by], 16)
    hashes = np.array([[int(values[by][row][cut : cut + 16], 16) for cut in cuts] for row in at], np.uint64)
    alone = np.array([by == "pdq" and (values["pdq_quality"][row] or 0) < MIN_QUALITY for row in at])
    scores = np.array([values["similarity"][row] for row in at], np.float64) if best else np.zeros(len(at))
    kept, sizes = brute_force(hashes, alone, scores, distance)
    stay = sorted({at[row] for row in kept} | {row for row, value in enumerate(values[by]) if value is None})
    assert row_ids(hashed, "near") == [values["row_id"][row] for row in stay]
    assert [cluster.rows for cluster in subset.reports[-1].largest_clusters] == sizes[:5]
    assert subset.reports[-1].low_quality == alone.sum() and (by == "phash" or alone.any())
    assert len(stay) < 1_867
    for row in {*range(len(at))} - {*kept}:  # every dropped row resembles a row that stays
        assert distances(hashes[row], hashes[kept]).min() <= (0 if alone[row] else distance)


def test_chunks_partitions_parts_and_tasks_do_not_change_the_result(
    hashed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"dedup": {"by": "pdq", "distance": 31, "best": "similarity"}}
    one = make_subset(hashed, "one", step, rows="pairs")
    for name, value in [
        ("PARTITION_ROWS", 700),
        ("TASK_ROWS", 900),
        ("KEY_TASKS", 3),
        ("FIRST_MOST", 1),
        ("FIRST_ROWS", 50),
    ]:
        monkeypatch.setattr(near_duplicates, name, value)
    monkeypatch.setattr(near_join, "MAX_SMALL", 2)  # so that most groups are large
    monkeypatch.setattr(near_compare, "_BLOCK", 10)
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 1_000)
    monkeypatch.setattr(LocalTasks, "memory_bytes", 50_000)
    many = make_subset(hashed, "many", step, rows="pairs")
    assert row_ids(hashed, "many") == row_ids(hashed, "one")
    assert many.reports[-1].largest_clusters == one.reports[-1].largest_clusters


@pytest.mark.parametrize(
    ("bits", "distance"), [(64, d) for d in range(1, 9)] + [(256, d) for d in (1, 7, 8, 15, 23, 31)]
)
def test_hashes_within_the_distance_agree_on_a_key_of_every_plan(bits: int, distance: int) -> None:
    rng = np.random.default_rng(distance)
    flips = np.zeros((2_000, bits // 64), np.uint64)
    for row, flip in enumerate(flips):
        crowded = rng.integers(1, bits + 1)  # the flipped bits may be close together or far apart
        for bit in rng.permutation(crowded)[:distance].tolist():
            flip[bit // 64] |= np.uint64(1) << np.uint64(bit % 64)
        assert distances(flip, np.zeros_like(flip)) <= distance, row
    for plan in plans(distance, bits):
        agree = [flips[:, key.word] & np.uint64(key.bits) == 0 for key in plan]
        near = [np.bitwise_count(flips[:, key.word] & np.uint64(key.slot)) <= key.radius for key in plan]
        assert (np.array(agree) & np.array(near)).any(axis=0).all()


def test_near_hashes_that_agree_on_a_key_agree_on_one_of_its_finer_keys() -> None:
    key = Key(0, 0xFFFF << 48, (1 << 64) - 1, 4)
    rng = np.random.default_rng(0)
    for _ in range(500):
        flips = sum(1 << bit for bit in rng.permutation(48)[:4].tolist())
        assert any(flips & finer.bits == 0 for finer in key.refined())


def chain(rows: int) -> U64:
    """A chain of hashes: each differs from the next in one bit, and from distant hashes in many bits."""
    bits = np.random.default_rng(0).permuted(np.tile(np.arange(64), (rows // 64 + 1, 1)), axis=1).ravel()[:rows]
    return np.bitwise_xor.accumulate(np.uint64(1) << bits.astype(np.uint64))[:, None]


def few_set_bits(rows: int) -> U64:
    """Hashes like those of flat pictures: most bits are zero, so most bands are equal, but few hashes are near."""
    rng = np.random.default_rng(1)
    flips = np.uint64(1) << rng.integers(0, 64, (rows, 12), dtype=np.uint64)
    return np.unique(np.bitwise_or.reduce(flips, axis=1))[:, None]


def ball(rows: int) -> U64:
    """Hashes that are all within eight bits of each other."""
    rng = np.random.default_rng(2)
    flips = np.uint64(1) << rng.integers(0, 64, (rows, 4), dtype=np.uint64)
    return np.unique(np.bitwise_xor.reduce(flips, axis=1))[:, None]


def half_zero(rows: int) -> U64:
    return np.random.default_rng(3).integers(0, 2**32, (rows, 1), dtype=np.uint64)


@pytest.mark.parametrize("make", [chain, few_set_bits, ball, half_zero])
def test_dedup_of_crowded_hashes_is_fast_and_equals_brute_force(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_compare, "_LONG", 16)
    monkeypatch.setattr(near_join, "MAX_SMALL", 8)
    hashes = make(3_000)
    order = np.random.default_rng(9).permutation(len(hashes)) if make is not chain else np.arange(len(hashes))
    hashes = hashes[order]
    started = time.process_time()
    states = decided(hashes, 4)
    assert time.process_time() - started < 2
    kept, _ = brute_force(hashes, np.zeros(len(hashes), np.bool_), np.zeros(len(hashes)), 4)
    assert np.flatnonzero(states == KEPT).tolist() == kept


def decided(hashes: U64, distance: int) -> npt.NDArray[np.uint8]:
    """The final states of these distinct hashes, which are sorted by rank."""
    states, first = np.full(len(hashes), UNDECIDED, np.uint8), len(hashes)
    question = Question(tuple(choose_keys(distance, hashes, len(hashes))), distance, 2)
    while (states == UNDECIDED).any():
        states, _ = decide(question.most, first, states, near_pairs(question, states, hashes))
        asked = replace(question, most=1, offer=(NEW,), first=len(hashes))
        states, _, _ = drop_near_new(states, near_pairs(asked, states, hashes))
        first = 500
        question = replace(question, most=first, first=first)
    return states


@given(st.integers(1, 60), st.integers(0, 2**32), st.floats(0, 0.6), st.integers(1, 4), st.integers(1, 60))
def test_decisions_equal_those_made_row_by_row(rows: int, seed: int, share: float, most: int, first: int) -> None:
    near = np.tril(np.random.default_rng(seed).random((rows, rows)) < share, -1)  # [worse, better]
    expected = list[int]()
    for row in range(rows):
        if not near[row, expected].any():
            expected.append(row)
    states = np.full(rows, UNDECIDED, np.uint8)
    while (states == UNDECIDED).any():
        undecided = np.flatnonzero(states == UNDECIDED)
        pairs = [
            pair for row in undecided[:first].tolist() for pair in best_pairs(near, states == UNDECIDED, row, most)
        ]
        states, left = decide(most, first, states, np.array(pairs, np.uint64))
        new = [pair for row in undecided.tolist() for pair in best_pairs(near, states == NEW, row, 1)]
        assert left == (states == UNDECIDED).sum() < len(undecided)
        states, left, _ = drop_near_new(states, np.array(new, np.uint64))
        assert left == (states == UNDECIDED).sum()
    assert np.flatnonzero(states == KEPT).tolist() == expected
    all_pairs = [int(worse) << 32 | int(better) for worse, better in np.argwhere(near)]
    once, left = decide(rows, rows, np.full(rows, UNDECIDED, np.uint8), np.array(all_pairs, np.uint64))
    assert left == 0 and np.flatnonzero(once == NEW).tolist() == expected


def best_pairs(near: npt.NDArray[np.bool_], offered: npt.NDArray[np.bool_], row: int, most: int) -> Iterator[int]:
    for better in np.flatnonzero(near[row] & offered)[:most].tolist():
        yield int(row) << 32 | better


@pytest.mark.parametrize(("words", "distance"), [(1, 0), (1, 4), (1, 8), (4, 10), (4, 31)])
def test_a_list_of_hashes_finds_what_brute_force_finds(words: int, distance: int) -> None:
    listed = hashes_with_near_ones(500, words, 10, seed=words)
    asked = np.concatenate([hashes_with_near_ones(300, words, 10, seed=9), listed[:200]])
    rng = np.random.default_rng(4)
    for row in range(300, 500):
        for bit in rng.integers(0, 64 * words, rng.integers(0, 2 * distance + 3)).tolist():
            asked[row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    expected = [bool((distances(each, listed) <= distance).any()) for each in asked]
    assert HashIndex.of(listed, distance).has_near(asked).tolist() == expected
    assert 50 < sum(expected) < 450
    assert not HashIndex.of(listed[:0], distance).has_near(asked).any()
    pairs = {
        pair
        for part in HashIndex.of(listed, distance).near_pairs(asked)
        for pair in zip(*map(np.ndarray.tolist, part), strict=True)
    }
    every = np.stack([distances(each, listed) for each in asked])
    assert pairs == {(row, at, int(every[row, at])) for row, at in np.argwhere(every <= distance).tolist()}


@pytest.mark.parametrize("bad", [["0" * 63], ["g" * 64], ["0" * 64, None], ["é" * 32]])
def test_values_that_are_not_hashes_are_refused(bad: list[str | None]) -> None:
    with pytest.raises(ValueError, match="hash"):
        hash_words(pa.array(bad), 4)
    digits = ["0123456789abcdef" * 4, "FEDCBA9876543210" * 4]
    assert hash_words(pa.array(["", *digits])[1:], 4).tolist() == [[0x0123456789ABCDEF] * 4, [0xFEDCBA9876543210] * 4]
