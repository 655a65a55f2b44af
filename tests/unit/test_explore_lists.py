"""Tests the explorer's lists on a generated dataset: every reject is on one page, and groups match a direct count."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.jobs.explore import run_select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.explore import rejects
from pairmill.pipeline.explore.compare import compare
from pairmill.pipeline.explore.duplicates import duplicates
from pairmill.pipeline.explore.explorer import Explorer
from pairmill.pipeline.explore.labels import Labels
from pairmill.pipeline.explore.rejects import PAGE_ROWS, RejectPages
from pairmill.pipeline.source.planned import PlanError
from pairmill.schemas.subset import SelectJob
from tests.picture_dataset import write

ROWS = 900


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    folder = tmp_path_factory.mktemp("dataset")
    write(folder, ROWS, None, shard_rows=180)
    store = Store(str(folder))
    made = Explorer(store, run_select, Labels(store, "session"), tmp_path_factory.mktemp("cache"))
    yield made
    made.close()


def table(explorer: Explorer, folder: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(Path(explorer.store.root, folder).glob("*.parquet")))


@pytest.mark.parametrize("shards_per_page", [200, 2])
@pytest.mark.parametrize("status", ["", "http_4xx", "timeout", "low_similarity"])
def test_every_reject_is_on_exactly_one_page(
    explorer: Explorer, status: str, shards_per_page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejects, "_SHARDS_PER_PAGE", shards_per_page)
    pages, found, cursor = RejectPages(explorer.store), list[str](), ""
    while True:
        page = pages.page(status, cursor)
        assert len(page.rows) <= PAGE_ROWS
        found += [row["row_id"] for row in page.rows]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    rows = table(explorer, "rejects").select(["row_id", "status"]).to_pylist()
    assert found == [row["row_id"] for row in rows if status in ("", row["status"])]
    counts = Counter(row["status"] for row in rows + table(explorer, "pairs").select(["status"]).to_pylist())
    assert {each.status: each.rows for each in page.reasons} == {k: n for k, n in counts.items() if k != "ok"}
    assert (page.rows_in, page.rejected) == (ROWS, len(rows))
    assert page.refused == ROWS - counts["ok"]
    assert page.refused - page.rejected == sum(each.rows for each in page.reasons if each.has_pictures)


def test_listing_the_rejects_of_a_missing_output_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="has no plan"):
        RejectPages(Store(str(tmp_path))).page("", "")


@pytest.mark.parametrize("by", ["sha256", "caption_clean"])
def test_groups_of_duplicates_match_a_direct_count(explorer: Explorer, by: str) -> None:
    counts = Counter(table(explorer, "pairs")[by].to_pylist())
    expected = sorted((n for n in counts.values() if n > 1), reverse=True)
    assert explorer.shown
    first = duplicates(explorer, explorer.shown, by, "1")
    found = [
        (group.value, group.rows)
        for page in range(1, first.pages + 1)
        for group in duplicates(explorer, explorer.shown, by, str(page)).groups
    ]
    assert [rows for _, rows in found] == expected
    assert all(counts[value] == rows for value, rows in found)
    assert (first.num_groups, first.num_rows) == (len(expected), sum(expected))


def test_two_subsets_are_compared_and_each_side_shows_its_own_pairs(explorer: Explorer) -> None:
    for name, where in (("low", "similarity < 0.25"), ("long", "length(caption) > 9 and similarity > 0.2")):
        run_select(
            SelectJob.model_validate({"dataset": explorer.store.root, "name": name, "steps": [{"where": where}]}), False
        )
    assert explorer.shown
    found = compare(explorer, explorer.shown, "low", "long")
    pairs = table(explorer, "pairs").to_pylist()
    low = {row["uid"] for row in pairs if row["kept"] and row["similarity"] < 0.25}
    long = {row["uid"] for row in pairs if row["kept"] and len(row["caption"]) > 9 and row["similarity"] > 0.2}
    for side, uids in zip(found.sides, (low - long, low & long, long - low), strict=True):
        assert side.count == len(uids)
        assert {card.uid for card in side.cards} <= uids
        assert len(side.cards) == min(len(uids), 12)
