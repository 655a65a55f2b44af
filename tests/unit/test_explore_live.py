"""Tests the explorer's live page: what it counts, and what it shows of new shards."""

from pathlib import Path

from pairmill.pipeline.explore.live import LiveState
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.report import funnel
from pairmill.pipeline.report.sample import MAX_ROWS, Totals, sampled
from tests.committed_shards import pair, reject, write_dataset


def test_the_funnel_is_that_of_the_report_with_custom_rules_by_name(tmp_path: Path) -> None:
    shards = [
        [
            pair("kept", 0.9),
            pair("low", 0.1, status="low_similarity"),
            pair("a", 0.9, status="custom_rule", status_detail=f"no_cats: {number}"),
            *(pair("b", 0.9, status="custom_rule", status_detail="no_dogs: a dog") for _ in range(number)),
            reject("gone"),
        ]
        for number in range(3)
    ]
    store = write_dataset(tmp_path, shards)
    state, totals = LiveState(store), Totals()
    now = state.now({})
    state.close()
    assert [(row.reason, row.rows, row.left) for row in now.losses] == [
        ("http 4xx", 3, 12), ("low similarity", 3, 9), ("custom rule: no_cats", 3, 6), ("custom rule: no_dogs", 3, 3),
    ]  # fmt: skip
    sampled(Snapshot.of(store).manifests(), MAX_ROWS, totals)
    reported = [reason for stage in funnel.of_dataset(totals).stages for reason in stage.reasons]
    assert [(row.rows, row.share_left) for row in now.losses] == [(each.rows, each.share_left) for each in reported]
    assert (now.rows_in, now.kept) == (15, 3)


def test_captions_of_new_pictures_are_cut_and_cannot_reorder_the_page(tmp_path: Path) -> None:
    state = LiveState(write_dataset(tmp_path, [[pair("\u202egnp.exe\u200b"), pair("a" * 10_000)]], has_scores=False))
    captions = [each.caption for each in state.now({}).newest]
    state.close()
    assert captions == ["\ufffdgnp.exe\ufffd", "a" * 179 + "…"]
