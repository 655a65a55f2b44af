"""Tests commits of handmade tables with ShardWriter."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairmill.jobs.results import Totals
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset import manifests
from pairmill.pipeline.dataset.commit import FilesDeletedError, ShardWriter, publish_manifest
from pairmill.pipeline.dataset.manifests import (
    ManifestError,
    committed,
    drop_superseded,
    read_manifest,
    read_manifests,
)
from pairmill.pipeline.dataset.previous_generation import failed_row_ids, read_previous
from pairmill.pipeline.dataset.strays import StrayFiles
from pairmill.pipeline.dataset.webdataset_tar import read_range, read_tar
from pairmill.pipeline.stages.build import _with_pairs
from pairmill.schemas.batch import BatchInfo, ShardBatch
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.manifest import Shard, ShardManifest
from pairmill.schemas.pairs import in_flight_schema
from pairmill.schemas.status import Step

EXTRA = pa.schema([pa.field("source_similarity", pa.float64())])
INFO = BatchInfo(Shard(7, "in.parquet", 0, 3, "f"), seconds={"download": 1.0})


def in_flight(statuses: list[str], is_pair: list[bool]) -> ShardBatch:
    rows = [
        {
            "row_id": f"7:{n}",
            "uid": f"{n:032x}",
            "url": f"http://host/{n}",
            "caption": "A  cat",
            "caption_clean": "A cat",
            "caption_index": 0,
            "status": status,
            "is_pair": pair,
            "image": f"picture {n}".encode() if pair else None,
            "sha256": f"{n:064x}" if pair else None,
            "source_similarity": 0.5,
        }
        for n, (status, pair) in enumerate(zip(statuses, is_pair, strict=True))
    ]
    return ShardBatch(INFO, pa.Table.from_pylist(rows, schema=in_flight_schema(EXTRA)))


def writer(root: Path, images_store: str = "pairs") -> ShardWriter:
    images = ImagesConfig.model_validate({"store": images_store})
    return ShardWriter(Store(str(root)), EXTRA, [], images, "0" * 32, {"pairmill": "0"})


@settings(
    max_examples=settings.default.max_examples // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=st.lists(st.sampled_from([("ok", True), ("low_similarity", True), ("timeout", False)]), max_size=9))
def test_every_row_is_written_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, bool]]
) -> None:
    root = tmp_path_factory.mktemp("out")
    manifest = writer(root).commit(in_flight([row[0] for row in rows], [row[1] for row in rows]))
    pairs, rejects = (pq.read_table(root / manifest.files[name].path) for name in ("pairs", "rejects"))
    assert sorted(pairs["row_id"].to_pylist() + rejects["row_id"].to_pylist()) == [f"7:{n}" for n in range(len(rows))]
    assert manifest.rows_in == len(rows) == manifest.pairs + manifest.rejects
    assert manifest.kept == sum(row == ("ok", True) for row in rows) == sum(pairs["kept"].to_pylist())
    assert sum(manifest.statuses.values()) == len(rows)


@pytest.mark.parametrize("own_uids", [None, "id"])
def test_duplicates_are_refused_before_the_encoder_and_lose_their_pictures_only_if_nothing_tells_them_apart(
    own_uids: str | None,
) -> None:
    batch = in_flight(["ok", "ok", "ok"], [True, True, True])
    uids = pa.array([f"{uid:032x}" for uid in (0, 0, 1)])
    stage: Any = SimpleNamespace(mapping=SimpleNamespace(uid_column=own_uids), custom_rules=list)
    table = _with_pairs(stage, batch.with_table(batch.table.set_column(1, "uid", uids))).table
    remains = [True, own_uids is not None, True]
    assert table["is_pair"].to_pylist() == remains
    assert [picture is not None for picture in table["image"].to_pylist()] == remains


@settings(
    max_examples=settings.default.max_examples // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([("ok", True), ("low_similarity", True), ("timeout", False)]),
            st.integers(0, 2),
            st.booleans(),
        ),
        min_size=1,
        max_size=9,
    )
)
def test_among_rows_with_the_same_uid_a_kept_row_stays_whichever_are_fetched_first(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[tuple[str, bool], int, bool]]
) -> None:
    """The third value of a row is whether it only succeeds in a retry."""
    root = tmp_path_factory.mktemp("out")
    outcomes = in_flight([status for (status, _), _, _ in rows], [pair for (_, pair), _, _ in rows])
    uids = pa.array([f"{uid:032x}" for _, uid, _ in rows])
    table = outcomes.table.set_column(1, "uid", uids)
    late = pa.array([late for _, _, late in rows])
    timeouts = in_flight(["timeout"] * len(rows), [False] * len(rows)).table.set_column(1, "uid", uids)
    first = pa.concat_tables([table.filter(pc.invert(late)), timeouts.filter(late)])
    manifest = writer(root).commit(outcomes.with_table(first))
    committed_pairs = pq.read_table(root / manifest.files["pairs"].path)
    if pc.any(late).as_py():
        previous = read_previous(Store(str(root)), manifest)
        manifest = writer(root).commit(outcomes.with_table(table.filter(late)), previous)
    pairs, rejects = (pq.read_table(root / manifest.files[name].path) for name in ("pairs", "rejects"))
    assert sorted(pairs["row_id"].to_pylist() + rejects["row_id"].to_pylist()) == [f"7:{n}" for n in range(len(rows))]
    assert len(set(pairs["uid"].to_pylist())) == pairs.num_rows
    best = {uid: max(pair + (status == "ok") for (status, pair), of, _ in rows if of == uid) for _, uid, _ in rows}
    found = {int(row["uid"], 16): 1 + row["kept"] for row in pairs.to_pylist()}
    assert found == {uid: value for uid, value in best.items() if value}
    kept_before = set(committed_pairs.filter(committed_pairs["kept"])["row_id"].to_pylist())
    assert kept_before <= set(pairs["row_id"].to_pylist())
    for row in rejects.to_pylist():
        if row["status"] == "duplicate_in_shard":
            other = int(row["status_detail"].removeprefix("row 7:"))
            assert (other != int(row["row_id"][2:]), f"{rows[other][1]:032x}") == (True, row["uid"])
            assert f"7:{other}" in pairs["row_id"].to_pylist()


def test_custom_rules_are_counted_by_name_and_recorded_only_if_there_are_any(tmp_path: Path) -> None:
    statuses = ["ok", "custom_rule", "custom_rule", "custom_rule", "custom_rule"]
    batch = in_flight(statuses, [True, True, False, False, False])
    details = pa.array([None, "mine:strict", "mine:strict: too long", "mine:str", "gone:rule"])
    place = batch.table.schema.get_field_index("status_detail")
    batch = batch.with_table(batch.table.set_column(place, batch.table.schema.field(place), details))
    steps = {"mine:strict": Step.SCORE, "mine:str": Step.CAPTION, "mine:unused": Step.URL}
    manifest = replace(writer(tmp_path / "own"), rule_steps=steps).commit(batch)
    assert {name: (count.step, count.rows) for name, count in manifest.custom_rules.items()} == {
        "mine:strict": (Step.SCORE, 2),
        "mine:str": (Step.CAPTION, 1),
    }
    assert read_manifest(Store(str(tmp_path / "own")), manifest.name) == manifest
    totals = Totals()
    totals.add(manifest)
    totals.add(manifest)
    assert totals.custom_rules["mine:strict"].rows == 4
    writer(tmp_path / "none").commit(in_flight(["ok"], [True]))
    (written,) = (tmp_path / "none/manifests").iterdir()
    assert "custom_rules" not in written.read_text()  # like the manifests of older versions


def test_a_picture_can_be_read_with_one_range_request(tmp_path: Path) -> None:
    manifest = writer(tmp_path).commit(in_flight(["ok", "timeout", "low_similarity"], [True, False, True]))
    pairs = pq.read_table(tmp_path / manifest.files["pairs"].path).to_pylist()
    with open(tmp_path / pairs[0]["image_tar"], "rb") as file:
        for row in pairs:
            picture = read_range(file, row["image_offset"], row["image_length"])
            assert picture == f"picture {row['row_id'][2:]}".encode()
        names = [name for name, *_ in read_tar(file)] if file.seek(0) == 0 else []
    assert names == [f"{row['uid']}.{end}" for row in pairs for end in ("jpg", "txt", "json")]


@pytest.mark.parametrize(("images_store", "stored"), [("pairs", 2), ("kept", 1), ("none", 0)])
def test_images_store_decides_which_pictures_are_stored(tmp_path: Path, images_store: str, stored: int) -> None:
    manifest = writer(tmp_path, images_store).commit(in_flight(["ok", "low_similarity"], [True, True]))
    pairs = pq.read_table(tmp_path / manifest.files["pairs"].path)
    assert len(pairs) - pairs["image_tar"].null_count == stored
    assert ("images" in manifest.files) == bool(stored)


def test_the_first_commit_of_a_shard_wins_and_the_second_leaves_no_trace(tmp_path: Path) -> None:
    first = writer(tmp_path).commit(in_flight(["ok"], [True]))
    second = writer(tmp_path).commit(in_flight(["timeout"], [False]))
    assert second == first
    assert Store(str(tmp_path)).list("pairs") == ["000000007.parquet"]
    assert Store(str(tmp_path)).list("rejects") == ["000000007.parquet"]


def test_a_crashed_attempt_does_not_block_the_next_and_its_files_are_deleted(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.create("pairs/000000007.parquet", b"half a shard, its worker was killed")
    store.create("pairs/000000008.parquet", b"another shard, still to be committed")
    manifest = writer(tmp_path).commit(in_flight(["ok"], [True]))
    assert manifest.files["pairs"].path != "pairs/000000007.parquet"
    assert StrayFiles(store).remove(manifest) == ["pairs/000000007.parquet"]
    assert store.exists(manifest.files["pairs"].path)
    assert store.exists("pairs/000000008.parquet")


def test_a_commit_whose_response_was_lost_is_recognized_as_our_own(tmp_path: Path) -> None:
    manifest = writer(tmp_path).commit(in_flight(["ok"], [True]))
    assert publish_manifest(Store(str(tmp_path)), manifest) == manifest
    assert Store(str(tmp_path)).exists(manifest.files["pairs"].path)


@pytest.mark.parametrize("is_reply_lost", [False, True])
def test_a_new_commit_is_valid_unless_its_files_are_known_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_reply_lost: bool
) -> None:
    """A purge can delete the files just before the manifest names them, and the check for that can fail."""
    store, manifest = Store(str(tmp_path)), writer(tmp_path).commit(in_flight(["ok"], [True]))
    if not is_reply_lost:
        store.delete(f"manifests/{manifest.name}")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "exists", MagicMock(side_effect=OSError("no network")))
        assert publish_manifest(store, manifest) == manifest
    assert read_manifest(store, manifest.name) == manifest
    if not is_reply_lost:
        store.delete(f"manifests/{manifest.name}")
    store.delete(manifest.files["pairs"].path)
    with pytest.raises(FilesDeletedError):
        publish_manifest(store, manifest)
    assert not committed(store)


@settings(
    max_examples=settings.default.max_examples // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.lists(st.sampled_from([("ok", True), ("timeout", False), ("http_4xx", False)]), min_size=1, max_size=9),
    healed=st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_a_new_generation_changes_only_the_rows_that_were_fetched_again(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, bool]], healed: list[bool]
) -> None:
    root = tmp_path_factory.mktemp("out")
    store = Store(str(root))
    old = writer(root).commit(in_flight([row[0] for row in rows], [row[1] for row in rows]))
    after = [("ok", True) if row[0] == "timeout" and healed[n] else row for n, row in enumerate(rows)]
    again = in_flight([row[0] for row in after], [row[1] for row in after])
    failed = failed_row_ids(store, old, {"timeout"})
    table = again.table.filter(pc.is_in(again.table["row_id"], value_set=failed.combine_chunks()))
    new = writer(root).commit(again.with_table(table), read_previous(store, old))
    assert (new.generation, new.rows_in, committed(store)) == (1, len(rows), {7: 1})
    assert list(read_manifests(store)) == [new]
    pairs, rejects = (pq.read_table(root / new.files[name].path) for name in ("pairs", "rejects"))
    assert pairs["row_id"].to_pylist() == [f"7:{n}" for n, row in enumerate(after) if row[1]]
    assert rejects["row_id"].to_pylist() == [f"7:{n}" for n, row in enumerate(after) if not row[1]]
    for row in pairs.to_pylist():
        with open(root / row["image_tar"], "rb") as tar:
            assert read_range(tar, row["image_offset"], row["image_length"]).decode() == f"picture {row['row_id'][2:]}"
    assert StrayFiles(store).remove(new) == []
    stale = iter([{7: 0}])  # a listing made before the new generation was committed
    drop_superseded(store)
    with patch.object(manifests, "committed", lambda store: next(stale, None) or committed(store)):
        assert list(read_manifests(store)) == [new]
    named = {file.path for file in new.files.values()}
    assert {f"{name}/{path}" for name in ("pairs", "rejects", "images") for path in store.list(name)} == named
    assert store.list("manifests") == [new.name]


def test_a_manifest_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    manifest: ShardManifest = writer(tmp_path).commit(in_flight(["ok"], [True]))
    newer = {**json.loads(manifest.model_dump_json()), "schema_version": 99, "surprise": 1}
    store.create("manifests/000000009.json", json.dumps(newer).encode())
    with pytest.raises(ManifestError, match="newer pairmill"):
        read_manifest(store, "000000009.json")


def test_empty_and_full_shards_have_the_same_schema(tmp_path: Path) -> None:
    none = writer(tmp_path / "a").commit(in_flight([], []))
    some = writer(tmp_path / "b").commit(in_flight(["ok"], [True]))
    for name in ("pairs", "rejects"):
        schemas = [pq.read_schema(tmp_path / place / m.files[name].path) for place, m in (("a", none), ("b", some))]
        assert schemas[0].equals(schemas[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_hugging_face_datasets_reads_the_pairs_and_rejects_of_shards_that_have_none(tmp_path: Path) -> None:
    """Row groups without rows stop `datasets` ("BatchSize must be greater than 0") and ClickHouse
    (ClickHouse#107746)."""
    import datasets

    for shard, (status, is_pair) in enumerate([("ok", True), ("timeout", False), ("ok", True)]):
        batch = in_flight([status] * 3, [is_pair] * 3)
        batch = replace(batch, info=replace(batch.info, shard=replace(batch.info.shard, shard=shard)))
        writer(tmp_path / "out").commit(batch)
    for folder, rows in ("pairs", 6), ("rejects", 3):
        files = sorted(map(str, (tmp_path / "out" / folder).iterdir()))
        assert len(files) == 3
        loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"), split="train")
        assert loaded.num_rows == rows


def test_foreign_files_are_skipped_and_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    writer(tmp_path).commit(in_flight(["ok"], [True]))
    store.create("manifests/.DS_Store", b"x")
    assert len(list(read_manifests(store))) == 1
    store.create("manifests/000000009.json", b"{")
    with pytest.raises(ManifestError, match=r"9\.json is damaged"):
        list(read_manifests(store))


ARABIC_EIGHT = "\u0660" * 8 + "\u0668.json"


@pytest.mark.parametrize("name", ["8.json", "0000000008.json", "000000008.g0.json", ARABIC_EIGHT])
def test_a_manifest_under_any_other_name_commits_nothing(tmp_path: Path, name: str) -> None:
    store = Store(str(tmp_path))
    writer(tmp_path).commit(in_flight(["ok"], [True]))
    (tmp_path / "manifests" / name).write_bytes(b"{}")
    assert committed(store) == {7: 0}


def test_a_manifest_copied_to_another_name_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    manifest: ShardManifest = writer(tmp_path).commit(in_flight(["ok"], [True]))
    store.create("manifests/000000001.json", store.read(f"manifests/{manifest.name}"))
    with pytest.raises(ManifestError, match=r"1\.json is a copy of the manifest 000000007\.json"):
        read_manifest(store, "000000001.json")
