"""Tests the explorer's live page and the messages on its pages when there is nothing to show."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from pairmill.jobs.explore import run_select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.explore import live
from pairmill.pipeline.explore.app import app
from pairmill.pipeline.explore.explorer import Explorer
from pairmill.pipeline.explore.labels import Labels
from pairmill.pipeline.explore.live import LiveState
from pairmill.pipeline.explore.security import Guard
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.report import funnel
from pairmill.pipeline.report.sample import MAX_ROWS, Totals, sampled
from tests.committed_shards import pair, reject, write_dataset


def test_the_funnel_equals_that_of_the_report_and_lists_custom_rules_by_name(tmp_path: Path) -> None:
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


def test_captions_of_new_pictures_are_truncated_and_cannot_reorder_the_page(tmp_path: Path) -> None:
    state = LiveState(write_dataset(tmp_path, [[pair("\u202egnp.exe\u200b"), pair("a" * 10_000)]], has_scores=False))
    captions = [each.caption for each in state.now({}).newest]
    state.close()
    assert captions == ["\ufffdgnp.exe\ufffd", "a" * 179 + "…"]


def test_the_rate_is_right_from_the_first_shard_on_and_after_a_time_without_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_dataset(tmp_path, [[pair("a"), pair("b")]] * 40, has_scores=False)
    manifests = sorted((tmp_path / "manifests").iterdir())
    (tmp_path / "later").mkdir()
    hidden = [path.rename(tmp_path / "later" / path.name) for path in manifests[1:]]
    now = 1_000.0
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now))
    state, rates = LiveState(store), []
    for seconds, shards in ((0, 0), (10, 5), (10, 5), (200, 20), (2, 1), (59, 0), (60, 0)):  # since the last look
        now += seconds
        for path in hidden[:shards]:
            path.rename(tmp_path / "manifests" / path.name)
        hidden = hidden[shards:]
        rates.append(state.now({}).rows_per_s)
    state.close()
    assert rates == [None, 1.0, 1.0, 0.2, pytest.approx(42 / 202), pytest.approx(2 / 61), 0.0]


def pages_of(store: Store, *addresses: str) -> list[str]:
    """The text of the explorer's pages at these addresses."""
    cache = Path(store.root).parent / "cache"
    explorer = Explorer(store, run_select, Labels(store, "session"), cache)
    with TestClient(app(explorer, Guard.of("127.0.0.1", 7800)), base_url="http://127.0.0.1:7800") as client:
        found = [client.get(address).text for address in addresses]
    explorer.close()
    return [re.sub(r"\s+", " ", each) for each in found]


def test_with_only_rejects_the_pages_blame_no_filter_and_offer_no_pairs(tmp_path: Path) -> None:
    store = write_dataset(tmp_path / "out", [[reject("a"), reject("b", "timeout")]])
    gallery, rejects, search, live = pages_of(store, "/", "/rejects", "/search?q=red", "/live")
    assert "No row became a pair" in gallery and "all pairs</a> shows" not in gallery
    assert 'id="side" open hidden>' in gallery
    assert "2 rows have no pair and are listed below." in rejects and "score rule" not in rejects
    assert "No pairs to search" in search and 'id="q"' not in search and 'role="alert"' not in search
    assert "No row became a pair." in live and "so far" not in live and "since this page was opened" not in live


def test_pairs_that_a_score_rule_refused_are_not_listed_as_rejects(tmp_path: Path) -> None:
    store = write_dataset(tmp_path / "out", [[pair("a", 0.1, status="low_similarity")]])
    gallery, rejects = pages_of(store, "/", "/rejects")
    assert "No pair was kept" in gallery and "all pairs</a> shows" in gallery
    assert "1 is a pair that a score rule refused: it is in the" in rejects
    assert "have no pair" not in rejects and "No row was refused" not in rejects and "All reasons" not in rejects


def test_without_a_model_or_rejects_the_pages_say_so_and_how_to_add_a_model(tmp_path: Path) -> None:
    store = write_dataset(tmp_path / "out", [[pair("a"), pair("b")]], has_scores=False, planned=2)
    gallery, rejects, search, live = pages_of(store, "/", "/rejects", "/search", "/live")
    assert '<option value="">nothing</option>' in gallery
    assert "Every row was kept." in rejects
    assert f"pairmill embed {store.root} --add-model NAME" in search and 'id="q"' not in search
    assert 'id="losses" hidden' in live and "Nothing has been refused so far." in live and "since this page" in live


def test_before_the_first_shard_nothing_is_called_kept(tmp_path: Path) -> None:
    gallery, rejects, live = pages_of(write_dataset(tmp_path / "out", [], planned=2), "/", "/rejects", "/live")
    assert "No shard is finished" in gallery and "No shard is finished" in rejects and "Every row" not in rejects
    assert "No picture has arrived yet." in live and "updates every two seconds" in live
