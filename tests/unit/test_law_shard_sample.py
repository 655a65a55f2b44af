"""Invariant: the report and the explorer read the same sample of shards, which changes little as a dataset grows."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.dataset.shard_sample import sample_shards
from pairmill.pipeline.explore.sample import sample
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.report.source import Source
from tests.committed_shards import pair, write_dataset

SIZES = st.dictionaries(st.integers(0, 10**9), st.integers(0, 50), max_size=30)


@given(SIZES, st.integers(0, 200), st.randoms(use_true_random=False))
def test_a_sample_is_filled_in_an_order_given_by_shard_numbers_alone(sizes: dict[int, int], most: int, rng) -> None:  # type: ignore[no-untyped-def]
    items = list(sizes.items())
    found = {items[position][0] for position in sample_shards(items, most)}
    rows = sum(sizes[shard] for shard in found)
    with_rows = {shard for shard, size in items if size}
    assert found <= with_rows and (len(found) == 1 or rows <= most)
    assert bool(found) == bool(with_rows)
    larger = {items[position][0] for position in sample_shards(items, most + 50)}
    assert found <= larger  # a larger sample contains all shards of a smaller one
    if found != with_rows:
        assert rows + 50 > most  # the next shard, of up to 50 rows, did not fit
    rng.shuffle(items)
    assert {items[position][0] for position in sample_shards(items, most)} == found
    fewer = [item for item in items if item[0] not in found or rng.random() < 0.5]
    kept = {shard for shard, _ in fewer} & found
    assert kept <= {fewer[position][0] for position in sample_shards(fewer, most)}  # before the dataset grew


def test_the_report_and_the_explorer_read_the_same_shards(tmp_path: Path) -> None:
    store = write_dataset(tmp_path, [[pair("a")] * size for size in (3, 1, 4, 1, 5, 2)], has_scores=False)
    snapshot = Snapshot.of(store)
    for most in range(17):
        shown = [shard for shard, _ in sample(snapshot, most).snapshot.generations]
        read = [snapshot.generations[position][0] for position in Source.of(snapshot, most).positions]
        assert shown == read
