"""Tests the parts of the explorer: labels, the column cache, samples, filters and reloads."""

import math
import re
import shlex
import shutil
import threading
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from typer.testing import CliRunner

from pairmill.jobs.cli.main import app as main
from pairmill.jobs.explore import ExploreOptions, explore, run_select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.output_folder import check_dataset_folder
from pairmill.pipeline.explore.actions import Actions
from pairmill.pipeline.explore.app import app
from pairmill.pipeline.explore.columns import cache_folder
from pairmill.pipeline.explore.explorer import Explorer, Shown
from pairmill.pipeline.explore.gallery import bars
from pairmill.pipeline.explore.labels import LABELS_SCHEMA, SAVE_EVERY, Labels
from pairmill.pipeline.explore.pages import shown_value
from pairmill.pipeline.explore.pictures import SMALL
from pairmill.pipeline.explore.query import Query
from pairmill.pipeline.explore.sample import sample
from pairmill.pipeline.explore.security import Guard
from pairmill.pipeline.explore.summary import describe, kind_of
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.reader.thumbnails import RowRef
from pairmill.schemas.errors import JobError, PairmillError
from tests.synthetic_dataset import default_columns, write_dataset

UIDS = [f"{n:032x}" for n in range(30)]
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_dataset(folder, 600, shard_rows=100)
    return folder


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Store:
    """A copy that a test can change."""
    return Store(str(shutil.copytree(original, tmp_path / "out")))


def opened(store: Store, max_rows: int = 10_000) -> tuple[Explorer, Shown]:
    explorer = Explorer(store, run_select, Labels(store, "session"), Path(store.root).parent / "cache", max_rows)
    assert explorer.shown
    return explorer, explorer.shown


def test_labels_are_saved_every_few_labels_and_at_the_end(store: Store) -> None:
    labels = Labels(store, "first", lambda: NOON)
    for uid in UIDS[: SAVE_EVERY - 1]:
        labels.put(uid, True)
    assert pq.read_table(store.path(labels.path)).num_rows == 1
    labels.put(UIDS[20], False)
    labels.put(UIDS[0], True)
    assert pq.read_table(store.path(labels.path)).num_rows == SAVE_EVERY
    labels.put(UIDS[0], False)
    labels.save()
    table = pq.read_table(store.path(labels.path))
    assert table.schema.equals(LABELS_SCHEMA)
    assert table.to_pylist()[-1] == {"uid": UIDS[0], "label": False, "labeled_at": NOON}
    assert (labels.counts, labels.get(UIDS[0]), labels.get(UIDS[29])) == ((SAVE_EVERY - 2, 2), False, None)
    check_dataset_folder(store)  # labels do not keep a later build from writing here


def test_undo_removes_labels_one_by_one(store: Store) -> None:
    labels = Labels(store, "first")
    labels.put(UIDS[0], True)
    labels.put(UIDS[0], False)
    labels.put(UIDS[1], True)
    assert [labels.undo(), labels.get(UIDS[1])] == [UIDS[1], None]
    assert [labels.undo(), labels.get(UIDS[0])] == [UIDS[0], True]
    assert [labels.undo(), labels.get(UIDS[0]), labels.undo()] == [UIDS[0], None, None]
    labels.save()
    assert pq.read_table(store.path(labels.path)).num_rows == 0


def test_a_session_never_overwrites_the_labels_of_another_session(store: Store) -> None:
    one, other = Labels(store, "same"), Labels(store, "same")
    one.put(UIDS[0], True)
    for _ in range(2):  # the first label fails, and it is not counted as stored
        with pytest.raises(JobError, match="another session"):
            other.put(UIDS[1], False)
        assert (other.get(UIDS[1]), other.counts) == (None, (0, 0))
    other.save()
    with pytest.raises(JobError, match="another session"):
        Labels(store, "same")
    assert pq.read_table(store.path(one.path))["uid"].to_pylist() == [UIDS[0]]


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a b", "a\n", "x" * 101])
def test_the_name_of_a_session_cannot_be_a_path(store: Store, name: str) -> None:
    with pytest.raises(JobError, match="is not a name"):
        Labels(store, name)


def test_columns_are_read_once_and_a_changed_dataset_gets_a_new_cache(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer, shown = opened(store)
    count = shown.view.count(Query.parse([("min:width", "500")]))
    shown.view.warm_up(threading.Event())
    explorer.close()
    reads: list[object] = []
    read = Snapshot.read
    monkeypatch.setattr(Snapshot, "read", lambda *a: reads.append(a) or read(*a))  # type: ignore[func-returns-value]
    again, warm = opened(store)
    assert warm.view.count(Query.parse([("min:width", "500")])) == count
    assert len(reads) == 1  # a single read, which gets some values of each text column
    folder = warm.view.cache.folder
    write_dataset(Path(store.root), 700, shard_rows=100)
    assert cache_folder(Snapshot.of(store), folder.parent) != folder
    again.reload()
    assert again.shown and again.shown.view.num_rows == 700
    assert not folder.exists()
    again.close()


def test_a_damaged_cache_is_rebuilt(store: Store) -> None:
    explorer, shown = opened(store)
    count = shown.view.count(Query())
    explorer.close()
    for path in shown.view.cache.folder.iterdir():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:40])
    again, warm = opened(store)
    assert warm.view.count(Query()) == count
    again.close()


def test_a_large_dataset_is_sampled_by_whole_shards_and_the_page_says_so(store: Store) -> None:
    explorer, shown = opened(store, max_rows=250)
    notice = "Counts are from a sample: 2 of 6 shards, 200 of 600 input rows."
    assert shown.view.sampled.notice == notice
    assert shown.view.num_rows == 200
    explorer.close()
    assert sample(Snapshot.of(store)).notice is None
    again = sample(Snapshot.of(store), 250).snapshot.generations
    assert list(again) == list(shown.view.snapshot.generations)
    write_dataset(Path(store.root), 1_200, shard_rows=100)
    grown = sample(Snapshot.of(store), 500).snapshot.generations
    assert set(grown) >= set(sample(Snapshot.of(store), 100).snapshot.generations)


def test_new_shards_are_noticed_and_must_be_seen_before_a_subset_is_saved(store: Store) -> None:
    explorer, _ = opened(store)
    write_dataset(Path(store.root), 800, shard_rows=100)
    assert explorer.new_shards == 2
    actions = Actions(explorer)
    with pytest.raises(PairmillError, match="2 new shards would be selected too"):
        actions.save_subset({"name": "x", "query": ""})
    actions.reload({})
    assert explorer.new_shards == 0
    assert actions.save_subset({"name": "x", "query": "min%3Awidth=500"}).startswith("/?subset=x")
    assert store.read("subsets/x/select.yaml").decode().splitlines()[1:] == [
        "name: x", "rows: kept", "steps:", "- where: width >= 500",
    ]  # fmt: skip
    for name in ("", "../x", "a b", "x"):
        with pytest.raises(PairmillError):
            actions.save_subset({"name": name, "query": ""})
    explorer.close()


def test_a_dataset_whose_first_shards_finish_while_it_is_shown_needs_no_reload(store: Store) -> None:
    manifests = sorted(Path(store.root, "manifests").iterdir())
    contents = [path.read_bytes() for path in manifests]
    for path in manifests:
        path.unlink()
    explorer = Explorer(store, run_select, Labels(store, "session"), Path(store.root).parent / "cache")
    with TestClient(app(explorer, Guard.of("127.0.0.1", 7800)), base_url="http://127.0.0.1:7800") as client:
        assert client.get("/api/count").json() == {
            "error": "No shard is finished yet. The Live page shows new shards as they arrive."
        }
        for path, content in zip(manifests[:2], contents, strict=False):
            path.write_bytes(content)
        newest = client.get("/api/live").json()["newest"]
        answer = client.get(newest[0]["address"])
        assert (answer.status_code, answer.text) == (
            404,
            "no picture stored",
        )  # the explorer has read the shard: this is not the error page
        assert explorer.shown is None
        assert client.get("/api/count").json()["of"] > 0
        command = client.get("/api/count?min:width=500").json()["command"]
    ended = CliRunner().invoke(main, [*shlex.split(command)[1:], "--dry-run"])
    assert ended.exit_code == 0, ended.output  # works although shards are missing
    Actions(explorer).save_subset({"name": "early", "query": "min%3Awidth=500"})
    assert yaml.safe_load(store.read("subsets/early/select.yaml"))["partial"] is True
    explorer.close()


def test_without_kept_pairs_the_page_blames_no_filter(store: Store) -> None:
    explorer, shown = opened(store)
    none = np.zeros(shown.view.num_rows, bool)
    with TestClient(app(explorer, Guard.of("127.0.0.1", 7800)), base_url="http://127.0.0.1:7800") as client:
        assert "No pair passes these filters" in client.get("/?min:width=1e9").text
        shown.view.memory._values.update({("start", "kept"): none, ("start", "pairs"): none})
        assert "No pair was kept" in (text := client.get("/?order=worst").text) and 'href="/?rows=pairs"' in text
        assert "No row became a pair" in client.get("/?rows=pairs&order=worst").text
    explorer.close()


def test_requesting_a_picture_after_a_reload_returns_a_message(store: Store) -> None:
    explorer, shown = opened(store)
    shown.pictures.close()
    for _ in range(2):
        assert shown.pictures.get(RowRef(0, 0), SMALL).problem == "the dataset was reloaded"
    explorer.close()


def test_the_exact_count_covers_the_whole_dataset_even_if_a_sample_is_shown(store: Store) -> None:
    whole, shown = opened(store)
    expected = shown.view.count(Query.parse([("min:width", "500")]))
    whole.close()
    sampled, some = opened(store, max_rows=250)
    assert some.view.count(Query.parse([("min:width", "500")])) < expected
    assert Actions(sampled).exact({"query": "min%3Awidth=500"}) == {"count": expected}
    sampled.close()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"] * 20, "choice"),
        ([f"caption {n}" for n in range(40)], "text"),
        (["x" * 200, "y"] * 20, "text"),
        ([None] * 5, "text"),
        ([True, False, None], "choice"),
        ([1, 2, None], "number"),
        ([1.5, float("nan"), float("inf")], "number"),
        ([NOON], "time"),
        ([[1]], None),
        ([b"x"], None),
    ],
)
def test_a_column_gets_the_kind_of_filter_that_fits_its_values(values: list[object], kind: str | None) -> None:
    array = pa.array(values, pa.string() if values == [None] * 5 else None)
    column = pa.chunked_array([array])
    assert kind_of(pa.field("x", array.type), column) == kind


@pytest.mark.parametrize(
    "values", [[], [None], [float("nan")], [1.0], [0.0, 1e300], [-5, -4], [1, None, 2.0**62, math.inf]]
)
def test_a_range_has_a_slider_whatever_its_values(values: list[float | None]) -> None:
    made = describe("x", "number", pa.chunked_array([pa.array(values, pa.float64())]))
    assert made.slider_low <= made.low <= made.high <= made.slider_high
    assert all(0 <= top <= 100 and 0 < height <= 100 for _, top, height in bars(made))
    assert sum(made.histogram) + made.nulls + made.not_finite == len(values)


RANGES = st.tuples(st.sampled_from([0.0, 1.0, 1e9, -1e6, 1e-9]), st.integers(-299, 300), st.integers(2, 9)).flatmap(
    lambda of: st.lists(st.floats(-1, 1).map(lambda x: of[0] + x * 10.0 ** of[1]), min_size=of[2], max_size=of[2])
)


@given(RANGES)
@example([1e-12, 3.3e-12, 5e-12])
@example([1_700_000_000.1, 1_700_000_000.3])
@example([-1.7e308, 1.7e308])
def test_a_slider_covers_the_range_and_values_a_step_apart_look_different_whatever_their_size(
    values: list[float],
) -> None:
    made = describe("x", "number", pa.chunked_array([pa.array(values)]))
    assert made.slider_low <= made.low <= made.high <= made.slider_high
    assert made.slider_low < made.slider_high or made.low == made.high or made.high - made.low <= 1e-300
    for one, other in pairwise(sorted(values)):
        assert made.text(one) != made.text(other) or other - one <= made.step


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (2**53 + 1, pa.int64(), "9,007,199,254,740,993"),
        (2**64 - 1, pa.uint64(), "18,446,744,073,709,551,615"),
        (0.2834, pa.float32(), "0.283"),
        (1_700_000_000.3, pa.float64(), "1,700,000,000.300"),
        (Decimal("1.20"), pa.decimal128(38, 2), "1.200"),
        (3.3e-12, pa.float64(), "3.300e-12"),
    ],
)
def test_a_number_on_a_card_has_the_digits_that_tell_it_from_others(value: Any, kind: pa.DataType, text: str) -> None:
    column = pa.chunked_array([pa.array([value], kind)])
    assert describe("x", "number", column).text(column[0].as_py()) == text


@given(st.data(), st.sampled_from([16, 32, 64]))
def test_the_page_of_a_pair_shows_all_digits_of_a_number(data: st.DataObject, bits: Any) -> None:
    value, kind = data.draw(st.floats(width=bits)), np.dtype(f"f{bits // 8}").type
    found = kind(shown_value(value, pa.from_numpy_dtype(kind)))
    assert np.array_equal(found, kind(value), equal_nan=True)


@pytest.mark.parametrize("address", ["/?page=20", "/?page=999999999", "/duplicates?page=999999"])
def test_a_page_after_the_last_one_names_the_last_one(store: Store, address: str) -> None:
    explorer, _ = opened(store)
    with TestClient(app(explorer, Guard.of("127.0.0.1", 7800)), base_url="http://127.0.0.1:7800") as client:
        page = client.get(address).text
        assert "There is no page" in page
        last = re.search(r'href="([^"]*)">The last page<', page)
        assert last and 'class="card' in client.get(last[1].replace("&amp;", "&")).text
    explorer.close()


def test_a_column_without_a_filter_is_listed_with_the_value_of_all_rows(tmp_path: Path) -> None:
    """If some rows are null or NaN, the column has a filter, with a single bar."""
    some = {"equal": [0.25] * 4, "nan": [0.25, math.nan] * 2, "null": [0.25, None] * 2, "none": [math.nan] * 4}
    own = {name: pa.array(values, pa.float32()) for name, values in some.items()} | {"word": pa.array(["a<b"] * 4)}
    own |= {"time": pa.array([1_700_000_000.5] * 4), "price": pa.array([Decimal("99999999.99")] * 4)}
    own |= {"whole": pa.array([2**62 + 1] * 4), "near": pa.array([2**62, 2**62 + 1] * 2)}  # equal as float64
    write_dataset(tmp_path / "out", 4, columns=lambda *of: {**default_columns(*of), **own})
    explorer, shown = opened(Store(str(tmp_path / "out")))
    with TestClient(app(explorer, Guard.of("127.0.0.1", 7800)), base_url="http://127.0.0.1:7800") as client:
        page = client.get("/").text
    explorer.close()
    assert f"equal (0.25), word (a&lt;b), time (1700000000.5), price (99999999.99), whole ({2**62 + 1})" in page
    (empty,) = (line for line in page.splitlines() if "No value in any row" in line)
    assert "none" in empty and "equal" not in empty
    for name in ("nan", "null", "near"):
        assert f'data-column="{name}"' in page
        assert [height for _, _, height in bars(shown.view.columns[name])] == [100]
        assert name == "near" or shown.view.columns[name].decimals >= 2  # shown as the bounds


@pytest.mark.parametrize("shared", ["pairmill/explore", "pairmill"])
def test_a_cache_that_others_can_write_to_is_not_used(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    homes: list[Path] = []

    def on_ready(_: object, explorer: Explorer) -> None:
        assert explorer.shown
        homes.append(explorer.shown.view.cache.folder.parent)
        raise KeyboardInterrupt

    for mode in (0o700, 0o777):
        (tmp_path / "cache" / "pairmill" / "explore").mkdir(parents=True, exist_ok=True, mode=0o700)
        (tmp_path / "cache" / shared).chmod(mode)
        with pytest.raises(KeyboardInterrupt):
            explore(store, ExploreOptions(port=0), on_ready)
    assert homes[0] == tmp_path / "cache" / "pairmill" / "explore"
    assert homes[1] != homes[0] and not homes[1].exists()


def test_a_port_in_use_and_an_unusable_host_are_clear_errors(store: Store) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(JobError, match=rf"127.0.0.1:{port} \(Address already in use\); choose another port with"):
            explore(store, ExploreOptions(port=port), lambda *_: None)
    with pytest.raises(JobError, match="check --host"):
        explore(store, ExploreOptions(host="203.0.113.7", port=0), lambda *_: None)
