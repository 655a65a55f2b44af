"""Invariant of the search index: whatever happens to a dataset between runs of `pairmill index`, the index finds what
brute force finds, and has the same parts as an index that is built in one run."""

import shutil
import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.search import build_index, part_files
from pairmill.pipeline.search import index as search_index
from tests.unit.search.test_search_index import brute_force, build, found, parts, queries
from tests.unit.search.vectors import SHARD_ROWS, make_dataset, retry

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.integers(1, 3)),
        st.tuples(st.just("retry"), st.integers(0, 7)),
        st.tuples(st.just("index"), st.just(0)),
        st.tuples(st.just("interrupted"), st.integers(0, 3)),
    ),
    max_size=6,
)


@settings(
    max_examples=max(1, settings.default.max_examples // 12),
    suppress_health_check=[HealthCheck.too_slow],  # type: ignore[union-attr]
)
@given(st.integers(1, 3), EVENTS)
@example(shards=1, events=[("interrupted", 0), ("retry", 0)])
def test_law_a_grown_index_equals_one_built_in_one_run(shards: int, events: list[tuple[str, int]]) -> None:
    with (
        tempfile.TemporaryDirectory() as temporary,
        patch.object(part_files, "PART_ROWS", 3 * SHARD_ROWS),
        patch.object(search_index, "MAX_UNINDEXED_ROWS", 0),
        patch.object(build_index, "_ABANDONED_S", -1),  # no other run is in progress
    ):
        folder = make_dataset(Path(temporary, "grown"), shards)
        for event, number in events:
            if event == "grow":
                shards += number
                make_dataset(folder, shards)
            elif event == "retry" and number < shards:
                retry(folder, number)
            elif event == "index":
                build(folder)
            elif event == "interrupted":
                _interrupted(folder, number)
        build(folder)
        assert found(folder) == brute_force(folder, queries(), 10)
        whole = Path(temporary, "whole")
        shutil.copytree(folder, whole, ignore=shutil.ignore_patterns("index"))
        build(whole)
        assert found(whole) == found(folder)
        assert parts(whole) == parts(folder)


def _interrupted(folder: Path, after: int) -> None:
    """Run an index job that dies after it has published this many records."""
    create, made = Store.create, 0

    def dies(store: Store, name: str, data: bytes) -> bool:
        nonlocal made
        made += 1
        if made > after:
            raise KeyboardInterrupt
        return create(store, name, data)

    with patch.object(Store, "create", dies):
        try:
            build(folder)
        except KeyboardInterrupt:
            return
