"""Tests the lists that a purge accepts, what the ledger records, and that it then blocks withdrawn rows."""

import io
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.main import app
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.hooks import NO_HOOKS
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import FilesDeletedError, ShardWriter, publish_manifest, retract_incomplete
from pairmill.pipeline.dataset.manifests import committed, read_manifests
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.dataset.subset import read_subset, subset_names
from pairmill.pipeline.dataset.withdrawn import request_name, unfinished_purges
from pairmill.pipeline.image.pdq import pdq
from pairmill.pipeline.purge import running
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.keys import canonical, domains, key
from pairmill.pipeline.purge.ledger import Ledger, to_parquet, write_request
from pairmill.pipeline.purge.lists import read_any_list, read_list
from pairmill.pipeline.purge.matching import Matcher
from pairmill.pipeline.purge.needles import Needles
from pairmill.pipeline.purge.pdq import PdqIndex
from pairmill.pipeline.purge.superseded import Unneeded, delete_all
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.source.rows import ShardReader
from pairmill.pipeline.stages.build import Commit, ReadRows
from pairmill.pipeline.stages.retry import CommitNextGeneration
from pairmill.schemas.batch import BatchInfo, ShardBatch
from pairmill.schemas.errors import JobError
from pairmill.schemas.manifest import ShardManifest, shards_from_table
from pairmill.schemas.purge import LIST_KINDS, ListKind
from tests.synthetic_dataset import write_dataset
from tests.unit.purge.conftest import World
from tests.unit.purge.world import CONTRACT, EXPORTS, in_flight

UID = "00112233445566778899aabbccddeeff"
FILES = Files()


@pytest.mark.parametrize(
    ("kind", "text", "same"),
    [
        ("uid", "00112233-4455-6677-8899-AABBCCDDEEFF", UID),
        ("url", "HTTP://u:p@Example.COM:80/a/./b/../c?q=1#f", "http://example.com/a/c?q=1"),
        ("url", "https://bücher.example/é", "https://xn--bcher-kva.example/%C3%A9"),
        ("host", "*.Example.com", "example.com"),
        ("host", "BÜCHER.example.", "xn--bcher-kva.example"),
        ("sha256", "AB" * 32, "ab" * 32),
        ("pdq", "F8" * 32, "f8" * 32),
    ],
)
def test_different_spellings_of_a_value_are_equal(kind: ListKind, text: str, same: str) -> None:
    assert canonical(kind, text) == canonical(kind, same) == same


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("uid", UID[1:]),
        ("url", "example.com/a.jpg"),
        ("url", '"http://example.com/a.jpg"'),
        ("url", "http://example.com/a.jpg,'a caption'"),
        ("url", "http://example.com/a.jpg\ta caption"),
        ("host", "http://example.com/"),
        ("host", "4"),
        ("host", "0.3.4"),
        ("host", "127.22.1.10:40469"),
        ("host", "example.com:80"),
        ("url", f"http://example.com/{'x' * (1 << 20)}"),
        ("url", "http://example.com/".encode("utf-16-le").decode()),
        ("sha256", UID),
        ("pdq", "x" * 64),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_line_number(tmp_path: Path, kind: ListKind, text: str) -> None:
    (tmp_path / "list.txt").write_text(f"# a comment\n\n{text}\n")
    with pytest.raises(
        JobError, match=r"list\.txt, line 3: (.* is not |contains a zero byte|the line is longer than 1,048,576 bytes)"
    ):
        read_list(FILES, str(tmp_path / "list.txt"), kind)


def test_urls_of_a_dataset_are_accepted_whatever_they_contain(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("http://example.com/w_100,h_100/it's.jpg\n")
    assert len(read_list(FILES, str(tmp_path / "list.txt"), "url")) == 1
    pq.write_table(pa.table({"url": ['"http://example.com/a.jpg"']}), tmp_path / "list.parquet")
    assert len(read_list(FILES, str(tmp_path / "list.parquet"), "url")) == 1


@pytest.mark.parametrize(
    "text", [UID[:20], "8F373714acfcf4d0", UID[:18] + "-", "10.0.3.4:80", "a.example:80", "a.example/b"]
)
def test_an_incomplete_value_is_not_mistaken_for_a_host_to_verify(tmp_path: Path, text: str) -> None:
    """Nothing would match such a value, so everything would seem to be clean."""
    (tmp_path / "list.txt").write_text(f"b.example\ncom\ncafe\n{text}\n")
    with pytest.raises(JobError, match=r"list\.txt, line 4: .* is not a complete uid, URL, host or hash"):
        read_any_list(FILES, str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("a.b.example", ["a.b.example", "b.example", "example"]),
        ("10.0.3.4", ["10.0.3.4"]),
        ("9.10.0.3.4", ["9.10.0.3.4"]),
        ("::ffff:10.0.3.4", ["::ffff:10.0.3.4"]),
        ("", []),
    ],
)
def test_a_host_has_parent_domains_and_an_ip_address_has_none(host: str, expected: list[str]) -> None:
    assert list(domains(host)) == expected


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/a.jpg",
        "ftp://evil.example/a.jpg",
        "//evil.example/a.jpg",
        "evil.example/a.jpg",
        "https:\\\\evil.example\\a.jpg",
        "https://evil.example\\a.jpg",
        "https://www.EVIL.example.:99999/a.jpg",
        "https://evil.example:80:80/a.jpg",
        "https://user:p@ss@evil.example:0/a.jpg",
        "https://evil.example%2fa.jpg",
        "https://[evil.example]/a.jpg",
        "https://evil.example/a b\x07.jpg",
        "https://evil.example/" + "x" * 9_000,
        "http://ev%69l.example/",
        "http://evil%EF%BC%8Eexample/",
        "http://ev\til.\r\nexample/",
        "ht\ntp:evil.example",
        "https://cdn.example/caf\u00e9?u=evil\uff0eexample",
        "http://ev\u00adil.exa\u200bmple\ufe0f/",
        "http://\uff45vil\u3002example/",
        "feed:http://evil.example/",
        "http:// evil.example/",
        "http://*.evil.example/",
        "http://<evil.example>/",
        "url(http://evil.example/a.jpg)",
        "http%3A%2F%2Fevil.example%2Fa",
        "http://https//evil.example/a",
        "https://cdn.example/?w=3&u=http://evil.example/a.jpg&h=3",
        "https://cdn.example/?u=http%253A%252F%252Fevil.example",
        "https://archive.example/web/2020/http:/evil.example/a.jpg",
        "https://cdn.example/www.evil.example/a.jpg",
    ],
)
def test_a_row_belongs_to_the_host_of_its_url_even_if_the_url_cannot_be_fetched(tmp_path: Path, url: str) -> None:
    store = Store(str(tmp_path))
    write_request(store, {"host": frozenset(["evil.example"])}, "asked for")
    rows = {
        "url": [
            url,
            "https://good.example/",
            "https://good.example/",
            "https://notevil.example/evil.example.jpg?u=http://a-evil.example",
        ],
        "final_url": [None, url, None, None],
        "status_detail": [None, None, f"redirect to {url}", "https://devil.example/, see example"],
    }
    assert Matcher(Ledger.load(store)).mask(pa.table(rows)).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/a.jpg",
        "https://archive.example/web/2020/https://EVIL.example:443/a.jpg#x",
        "https://archive.example/https:/evil.example/a.jpg",
        "https://cdn.example/?u=https://evil.example/a.jpg&w=3",
        "https://cdn.example/?u=https%3A%2F%2Fevil.example%2Fa.jpg&w=3",
        "https://cdn.example/fetch?u=https://cdn.example/https%3A%2F%2Fevil.example%2Fa.jpg",
    ],
)
def test_a_listed_url_inside_another_url_is_withdrawn_and_found(tmp_path: Path, url: str) -> None:
    store, listed = Store(str(tmp_path)), {"url": frozenset(["https://evil.example/a.jpg"])}
    write_request(store, listed, "asked for")
    urls = [url, "https://good.example/", url.replace("a.jpg", "b.jpg"), url.lower().replace("evil", "good")]
    rows = {"url": urls, "status_detail": [None, f"loop to {url}", None, None]}
    assert Matcher(Ledger.load(store)).mask(pa.table(rows)).tolist() == [True, True, False, False]
    assert [bool(list(Needles(listed).in_text(each))) for each in urls] == [True, False, False, False]


def test_all_of_many_rows_are_compared(tmp_path: Path) -> None:
    """Rows are compared a few at a time, because each can name many URLs."""
    store, listed = Store(str(tmp_path)), (0, 63, 64, 129)
    write_request(store, {"url": frozenset(f"https://evil.example/{row}" for row in listed)}, "asked for")
    rows = range(130)
    table = pa.table({"url": [f"https://p.example/?u=https://evil.example/{row}" for row in rows]})
    matcher = Matcher(Ledger.load(store))
    assert np.flatnonzero(matcher.mask(table)).tolist() == list(listed)
    assert len(matcher.matched(table)) == len(listed)


def test_punctuation_at_the_end_of_a_url_is_part_of_it_but_not_of_a_message(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_request(store, {"url": frozenset(["https://evil.example/a", "https://evil.example/b!"])}, "asked for")
    urls = [f"https://evil.example/{end}" for end in ("a", "a!", "a?", "a.", "a)", "a&#46;", "b!", "b", "b!!")]
    matcher = Matcher(Ledger.load(store))
    assert matcher.withdrawn_urls(urls).tolist() == [True, *[False] * 5, True, False, False]
    assert matcher.mask(pa.table({"status_detail": [f"see {url}" for url in urls]})).tolist()[:5] == [True] * 5


def test_requests_of_earlier_versions_withdraw_no_rows_that_only_name_a_listed_value(tmp_path: Path) -> None:
    store, url = Store(str(tmp_path)), "https://evil.example/a.jpg"
    number = write_request(store, {"url": frozenset([url]), "host": frozenset(["bad.example"])}, "asked for")
    request = pq.read_table(tmp_path / request_name(number))
    record = json.loads(request.schema.metadata[b"pairmill"])
    assert record.pop("matching") == "named"
    old = request.replace_schema_metadata({"pairmill": json.dumps(record)})
    store.replace(request_name(number), to_parquet(old))
    named = ["https://cdn.example/?u=https://bad.example", f"https://cdn.example/{url}", "http://b%61d.example/"]
    rows = {
        "url": [url, "https://www.BAD.example:99999/", *named, "https://good.example/"],
        "status_detail": [*[None] * 5, f"redirect to {url}."],
    }
    own = [True, True, False, False, False, True]
    assert Matcher(Ledger.load(store)).mask(pa.table(rows)).tolist() == own
    write_request(store, {"url": frozenset(["https://other.example/"]), "host": frozenset(["x.example"])}, "later")
    assert Matcher(Ledger.load(store)).mask(pa.table(rows)).tolist() == own
    write_request(store, {"host": frozenset(["bad.example"])}, "the list once more")
    assert Matcher(Ledger.load(store)).mask(pa.table(rows)).tolist() == [True, True, True, False, True, True]


def test_a_number_is_an_address_only_as_the_host_of_a_url(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_request(store, {"host": frozenset(["127.0.0.1", "localhost"])}, "asked for")
    hosts = ("2130706433", "0x7f.1", "%3127.1", "localhost")
    urls = [each.format(host) for host in hosts for each in ("http://{}:80/a", "https://p.example/?u=http://{}/%C3%A9")]
    others = [
        each.format(host)
        for host in ("2130706433", "0x7f.1", "localhost")
        for each in ("https://p.example/?id={}%2C7&x=a%20b&y=c%20d", "https://p.example/?x=a%20{}&y=b%20c", "/{}%20a/")
    ]
    assert Matcher(Ledger.load(store)).withdrawn_urls([*urls, *others]).tolist() == [True] * 8 + [False] * 9


_PARTS = ["http:", "//", "/", "evil.example", "evil", ".example", "not", "a.", "a.jpg", ".", "-", "%2F", "%65", "%3A"]
_PARTS += ["?u=", "&", "&#47;", "\\", "\\/", "@", ":", "\t", "\u00ad", "\uff0e", "#", ",", '"']


@settings(max_examples=settings.default.max_examples * 5)
@given(st.lists(st.sampled_from(_PARTS), max_size=12).map("".join))
def test_law_a_purge_withdraws_every_url_that_a_search_would_find(url: str) -> None:
    listed: list[tuple[ListKind, str]] = [("host", "evil.example"), ("url", "http://evil.example/a.jpg")]
    for kind, value in listed:
        needles = Needles({kind: frozenset([value])})
        with patch("pairmill.pipeline.purge.keys._MAX_PUNCTUATION", 0):  # the end of a URL, for a purge
            is_found = bool({*needles.in_text(url), *needles.in_cells([url])})
        if is_found:
            asked = {each: DigestSet.of([key(each, value)] if each == kind else []) for each in LIST_KINDS}
            assert Matcher(Ledger(asked, DigestSet.of([]), frozenset(), asked)).withdrawn_urls([url]).all(), kind


NO_AT = st.characters(exclude_characters="@", codec="utf-8")
NO_HOST = st.characters(exclude_characters="@_.-", exclude_categories=["L", "N", "Cs"])
"""Characters that end a host."""


@settings(max_examples=settings.default.max_examples // 2)
@given(st.text(max_size=20), st.just("") | st.tuples(NO_HOST, st.text(NO_AT, max_size=19)).map("".join))
def test_a_search_finds_any_host_after_two_slashes(before: str, after: str) -> None:
    text = f"{before}//evil.example{after}"
    for host in ("evil.example", "example"):
        needles = Needles({"host": frozenset([host])})
        assert f"host {host}" in {*needles.in_text(text), *needles.in_text(json.dumps(text))}


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("evil.example", "by www.Evil.example, 2024"),
        ("evil.example", '{"x": "see\\nevil.example"}'),
        ("evil.example", "https://a.example/?u=http%3A%2F%2Fevil.example%2Fa"),
        ("xn--bcher-kva.example", "on bücher.example"),
        ("10.0.3.4", "from 10.0.3.4:80"),
        ("2001:db8::1", "http://[2001:DB8::1]/ or 2001:db8::1"),
    ],
)
def test_a_search_finds_a_standalone_host(host: str, text: str) -> None:
    assert set(Needles({"host": frozenset([host])}).in_text(text)) == {f"host {host}"}
    assert not set(Needles({"host": frozenset([f"x{host}", "3.4", "vil.example"])}).in_text(text))


def test_lists_can_be_parquet_and_their_kinds_are_recognized(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uid": pa.array([bytes.fromhex(UID), None], pa.binary(16)),
            "url": pa.array(["http://a.example/1", "http://A.example/1"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    path = str(tmp_path / "list.parquet")
    assert read_list(FILES, path, "uid") == {UID}
    assert read_any_list(FILES, path) == {"uid": {UID}, "url": {"http://a.example/1"}}
    with pytest.raises(JobError, match="has no column `host`"):
        read_list(FILES, path, "host")
    (tmp_path / "list.txt").write_text(f"{UID}\r\nhttp://a.example/1\r\n{'0' * 64}\r\nexample.com\r\n")
    found = read_any_list(FILES, str(tmp_path / "list.txt"))
    assert {kind: len(values) for kind, values in found.items()} == dict.fromkeys(LIST_KINDS, 1)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for name, problem in (("missing.txt", "cannot be read"), ("empty.txt", "has no values"), ("\0", "cannot be read")):
        with pytest.raises(JobError, match=problem):
            read_list(FILES, str(tmp_path / name), "uid")


@given(st.lists(st.binary(min_size=32, max_size=32)), st.lists(st.binary(min_size=32, max_size=32)))
def test_digest_sets_behave_like_python_sets(ours: list[bytes], others: list[bytes]) -> None:
    ours += [bytes(32), bytes([1, *bytes(31)])]  # digests with trailing zeros
    asked = [*ours, *others, None]
    assert DigestSet.of(ours).contains(asked).tolist() == [each in set(ours) for each in asked]
    assert len(DigestSet.of(ours)) == len(set(ours))


def test_pdq_hashes_match_up_to_31_bits() -> None:
    rng = np.random.default_rng(1)
    listed = [rng.bytes(32) for _ in range(5)]
    hashes: list[str | None] = [None, "not a hash", "f" * 63]
    distances: list[int | None] = [None] * 3
    for flips in (*range(28, 36), 0, 128):
        bits = np.unpackbits(np.frombuffer(listed[flips % 5], np.uint8))
        bits[rng.choice(256, flips, replace=False)] ^= 1
        hashes.append(np.packbits(bits).tobytes().hex().upper())
        distances.append(flips)
    near = PdqIndex.of([each.hex() for each in listed]).has_near(pa.table({"pdq": hashes}))
    assert near.tolist() == [flips is not None and flips <= 31 for flips in distances]


def test_pdq_hashes_of_plain_pictures_are_not_compared(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_request(store, {"pdq": frozenset(["0" * 64])}, "a list of hashes")
    matcher = Matcher(Ledger.load(store))
    rows = pa.table({"uid": ["a", "b"], "pdq": ["0" * 56 + "7" * 8, "1" * 64]})
    assert matcher.mask(rows).tolist() == [True, False]
    rows = pa.table({"pdq": ["0" * 64] * 3, "pdq_quality": pa.array([50, 49, None], pa.uint8())})
    assert matcher.columns >= {"pdq", "pdq_quality"}
    assert matcher.mask(rows).tolist() == [True, False, True]  # low quality: plain pictures all have the same hash


HASHES: dict[str, Callable[[str], pa.Array | None]] = {
    "no column": lambda digits: None,
    "null": lambda digits: pa.nulls(12, pa.string()),
    "another type": lambda digits: pa.array(range(12)),
    "other text": lambda digits: pa.array([f" {digits}", f"0x{digits}", digits[:60], "", *["zz"] * 8]),
}
"""What rows have instead of the hash of their picture."""


@pytest.mark.parametrize("hashes", HASHES)
def test_pictures_are_compared_with_listed_hashes_whatever_columns_their_rows_have(world: World, hashes: str) -> None:
    """Rows 30 and 31 of shard 2 have the same picture, but row 31 was not fetched."""
    store, source, plan = Store(str(world.out)), world.source, load_plan(Store(str(world.out)))
    table = in_flight(source, shards_from_table(plan.shards)[2])
    digits = pdq(np.asarray(Image.open(io.BytesIO(source.picture(30))).convert("L"))).digits
    write_request(store, {"pdq": frozenset([f"{int(digits, 16) ^ 0x7F << 90:064x}"])}, "a list of hashes")
    if (column := HASHES[hashes](digits)) is not None:
        table = table.append_column("pdq", column)
    passed = Commit(plan.job, plan.mapping).gate()(table)
    assert [row for row, status in enumerate(passed["status"].to_pylist(), 24) if status == "withdrawn"] == [30]


@pytest.mark.parametrize("kind", LIST_KINDS)
@pytest.mark.parametrize("generation", [None, 0])
def test_no_commit_stores_what_a_list_names(world: World, kind: ListKind, generation: int | None) -> None:
    """A build of shard 4 or a retry of shard 3, during which the request is made."""
    store, source = Store(str(world.out)), world.source
    plan = load_plan(store)
    job, shard = (
        plan.job.model_copy(update={"output": str(world.out)}),
        shards_from_table(plan.shards)[4 if generation is None else 3],
    )
    row = shard.first_row + 1
    table = in_flight(source, shard)
    stage = (Commit if generation is None else CommitNextGeneration)(job, plan.mapping).open(NO_HOOKS)
    values = {
        "uid": source.uid(row),
        "url": source.url(row),
        "host": "elsewhere.example",
        "sha256": source.sha256(row),
        "pdq": pdq(np.asarray(Image.open(io.BytesIO(source.picture(row))).convert("L"))).digits,
    }
    write_request(store, {kind: frozenset([canonical(kind, values[kind]) or ""])}, "asked for")
    manifest = stage(ShardBatch(BatchInfo(shard, generation, rows_in=12, contracts=(CONTRACT,)), table))
    gone = [
        each
        for each in range(shard.first_row, shard.first_row + 12)
        if (each % 5 == 0 if kind == "host" else each == row)
    ]
    assert isinstance(manifest, ShardManifest)
    assert manifest.withdrawn == len(gone)
    stored = pq.read_table(world.out / manifest.files["pairs"].path)["uid"].to_pylist()
    assert {source.uid(each) for each in gone}.isdisjoint(stored)


@pytest.mark.parametrize(("is_committed_first", "is_retracted_first"), [(False, False), (True, False), (True, True)])
def test_a_shard_whose_files_a_purge_deletes_is_not_committed(
    world: World, monkeypatch: pytest.MonkeyPatch, is_committed_first: bool, is_retracted_first: bool
) -> None:
    """A build commits shard 4 while a purge deletes files that no manifest names: the manifest is created after the
    purge, or just before the files are deleted. In the latter case, the build can notice it before the purge does."""
    store, plan = Store(str(world.out)), load_plan(Store(str(world.out)))
    shard, job = shards_from_table(plan.shards)[4], plan.job.model_copy(update={"output": str(world.out)})
    commit = Commit(job, plan.mapping).open(NO_HOOKS)
    uids = world.write("uids.txt", [world.source.uid(1)])
    published = []

    def publish(store: Store, manifest: ShardManifest) -> ShardManifest:
        def delete(store: Store, files: Iterable[Unneeded]) -> list[Unneeded]:
            found = list(files)
            if is_committed_first:
                published.append(publish_manifest(store, manifest))
            return delete_all(store, iter(found))

        def list_committed(store: Store) -> dict[int, int]:
            found = committed(store)
            if published and is_retracted_first:
                retract_incomplete(store, published[0])
                assert committed(store) != found
            return found

        monkeypatch.undo()
        monkeypatch.setattr("pairmill.pipeline.purge.purge.delete_all", delete)
        monkeypatch.setattr("pairmill.pipeline.purge.purge.committed", list_committed)
        pairmill.purge(world.out, uids=uids, reason="asked for")
        return published[0] if published else publish_manifest(store, manifest)

    monkeypatch.setattr("pairmill.pipeline.dataset.commit.publish_manifest", publish)
    with nullcontext() if is_committed_first else pytest.raises(FilesDeletedError, match="a purge deleted files"):
        commit(ShardBatch(BatchInfo(shard, rows_in=12, contracts=(CONTRACT,)), in_flight(world.source, shard)))
    assert list(committed(store)) == [0, 1, 2, 3]
    assert pairmill.verify(world.out, rescore=0).problems == []


def test_a_missing_tar_does_not_keep_a_purge_of_other_rows_from_finishing(world: World) -> None:
    """The next generation of the shard keeps the tar. `verify` reports it as missing."""
    store = Store(str(world.out))
    shard, rejects = next(
        (manifest, rejects)
        for manifest in read_manifests(store)
        if "images" in manifest.files and (rejects := read_table(store, manifest.files["rejects"].path)).num_rows
    )
    store.delete(shard.files["images"].path)
    uids = world.write("uids.txt", rejects["uid"].to_pylist())
    assert pairmill.purge(world.out, uids=uids, reason="asked for").purged.shards == [shard.shard]
    assert committed(store)[shard.shard] == 1
    assert not unfinished_purges(store)


def test_the_ledger_keeps_only_hashes(world: World) -> None:
    source = world.source
    rows = (1, 5, 8)
    lists = {
        "uids": world.write("uids.txt", [source.uid(1)]),
        "hosts": world.write("hosts.txt", ["elsewhere.example"]),
        "urls": world.write("urls.txt", [source.url(8)]),
    }
    pairmill.purge(world.out, **lists, reason="a letter of 3 May")  # type: ignore[arg-type]
    kept = b"".join(path.read_bytes() for path in sorted((world.out / "withdrawn").rglob("*.*")))
    tables = [pq.read_table(path) for path in (world.out / "withdrawn").glob("*.parquet")]
    kept += repr([table.to_pylist() for table in tables]).encode()
    assert b"a letter of 3 May" in kept
    for row in rows:
        assert not [mark for mark in (*source.marks(row), b"elsewhere.example", b"Elsewhere") if mark in kept]


def test_a_reason_is_required_and_must_not_name_withdrawn_values(world: World) -> None:
    uids = world.write("uids.txt", [world.source.uid(1)])
    with pytest.raises(JobError, match="--reason: say in a few words why"):
        pairmill.purge(world.out, uids=uids)
    url, uid = world.source.url(1), world.source.uid(1)
    lists = {"uids": uids, "urls": world.write("urls.txt", [url]), "hosts": world.write("hosts.txt", ["a.example"])}
    for kind, reason in [("uid", f"about {uuid.UUID(uid)}"), ("url", f"mail({url})"), ("host", "for www.A.example")]:
        with pytest.raises(JobError, match=f"--reason names a {kind} of the list"):
            pairmill.purge(world.out, reason=reason, **{f"{kind}s": lists[f"{kind}s"]})  # type: ignore[arg-type]
    with pytest.raises(JobError, match="at most 1,000"):
        pairmill.purge(world.out, uids=uids, reason="x" * 1_001)
    with pytest.raises(JobError, match="say what to withdraw"):
        pairmill.purge(world.out)
    assert not (world.out / "withdrawn").exists()


def test_a_dry_run_finds_the_same_rows_and_subsets_as_the_purge(world: World) -> None:
    """Rows 30 and 31, in another shard, have the same picture as row 2. A reject in a third shard is the same pair as
    row 2, but its picture could not be fetched."""
    shas = world.write("sha256.txt", [world.source.sha256(2)])
    rejects = world.out / "rejects/000000003.parquet"
    table = pq.ParquetFile(rejects).read()
    uids = [world.source.uid(2), *table["uid"].to_pylist()[1:]]
    rejects.unlink()  # a hard link to the file of all tests' datasets
    pq.write_table(table.set_column(table.schema.get_field_index("uid"), table.schema.field("uid"), [uids]), rejects)
    store = Store(str(world.out))
    before = {name: read_subset(store, name).rows_out for name in subset_names(store)}
    planned = pairmill.purge(world.out, sha256=shas, dry_run=True)
    done = pairmill.purge(world.out, sha256=shas, reason="asked for").purged
    for name in ("rows", "shards", "subsets", "scores", "reports"):
        assert getattr(planned.purged, name) == getattr(done, name), name
    assert done.shards == [0, 2, 3]
    assert planned.subset_rows == {name: before[name] - read_subset(store, name).rows_out for name in before}
    assert sum(planned.subset_rows.values()) > 0


def test_a_dry_run_after_an_interrupted_purge_counts_the_rows_of_both(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(world.out))
    before = {name: read_subset(store, name).rows_out for name in subset_names(store)}
    first, second = (world.write(f"{row}.txt", [world.source.uid(row)]) for row in (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr("pairmill.pipeline.purge.purge.purge_subsets", MagicMock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pairmill.purge(world.out, uids=first, reason="asked for")
    planned = pairmill.purge(world.out, uids=second, dry_run=True).subset_rows
    assert pairmill.purge(world.out, uids=second, reason="asked for").purged.subsets == list(planned)
    assert planned == {name: before[name] - read_subset(store, name).rows_out for name in before}


def test_a_dry_run_lists_a_subset_of_which_only_the_overlap_changes(world: World) -> None:
    write_dataset(world.root / "photos", 20)
    step = f"leak: {{against: {world.root / 'photos'}, by: [sha256]}}"
    pairmill.select(world.out, "clean", steps=[step], settings={"partial": True})
    (path,) = (world.out / "subsets/clean").rglob("*overlap*/*.parquet")
    schema = pa.schema([field.with_nullable(True) for field in pq.read_schema(path)])
    pq.write_table(pa.Table.from_pylist([{"uid": "d" * 32, "item_uid": "e" * 32}], schema), path)
    uids = world.write("uids.txt", ["e" * 32])
    assert pairmill.purge(world.out, uids=uids, dry_run=True).subset_rows == {"clean": 0}
    assert pairmill.purge(world.out, uids=uids, reason="asked for").purged.subsets == ["clean"]


@pytest.mark.parametrize("score", [None, "density: {model: b32, neighbors: 2, clusters: 2, sample: 1000}"])
def test_a_dry_run_reads_only_what_it_compares(
    world: World, monkeypatch: pytest.MonkeyPatch, score: str | None
) -> None:
    """It compares embeddings only with those in the state of a score."""
    if score is not None:
        pairmill.score(world.out, "crowd", score=score, settings={"partial": True})
    hosts, seen = world.write("hosts.txt", ["elsewhere.example"]), set[str]()
    read = pq.ParquetFile.read

    def noted(file: pq.ParquetFile, columns: list[str] | None = None, **more: Any) -> pa.Table:
        seen.update(file.schema_arrow.names if columns is None else columns)
        return read(file, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "read", noted)
    assert pairmill.purge(world.out, hosts=hosts, dry_run=True).purged.rows == 10
    assert {"uid", "url", "row_id"} < seen
    assert {"image_embedding_b32", "text_embedding_b16"} <= seen if score else not any("embed" in name for name in seen)
    assert seen.isdisjoint(["caption", "caption_clean", "image_tar", "sha256", "words"])


def test_a_dry_run_changes_nothing(world: World) -> None:
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(world.root.rglob("*")) if path.is_file()}

    before = files()
    hosts = world.write("hosts.txt", ["elsewhere.example", "host"])
    result = pairmill.purge(world.out, hosts=hosts, dry_run=True)
    assert (result.purged.rows, result.purged.shards, result.purged.reports) == (10, [0, 1, 2, 3], ["report.html"])
    assert sorted(Path(each.output).name for each in result.purged.exports) == sorted(EXPORTS)
    text = CliRunner().invoke(app, ["purge", str(world.out), "--hosts", str(hosts), "--dry-run"]).stdout
    assert "10 rows in 4 shards would be withdrawn; nothing was changed\n1 of 2 listed hosts matches no row in" in text
    assert "rejects/, such as host\nshards: 0, 1, 2, 3\nsubsets that" in text
    assert "subsets that would be rewritten: all (would lose 8 rows), half (" in text
    assert f"export that would be searched for such rows: {world.root}/pool\n" in text
    assert files() == before


def test_a_purge_that_withdraws_nothing_keeps_the_reports(world: World) -> None:
    uids = world.write("uids.txt", ["0" * 32])
    assert pairmill.purge(world.out, uids=uids, reason="asked for").purged.reports == []
    assert (world.out / "report.html").exists()


def test_withdrawn_rows_are_never_read_fetched_or_stored_again(world: World) -> None:
    """Shard 4 is not committed. Row 50 is withdrawn by its host, row 52 by its uid, and row 53 turns out to have a
    withdrawn picture."""
    source, store = world.source, Store(str(world.out))
    hosts = world.write("hosts.txt", ["elsewhere.example"])
    uids = world.write("uids.txt", [source.uid(52)])
    pictures = world.write("sha256.txt", [source.sha256(2)])
    pairmill.purge(world.out, hosts=hosts, uids=uids, sha256=pictures, reason="asked for")
    plan = load_plan(store)
    shard = shards_from_table(plan.shards)[4]
    reader = ShardReader(store, plan.mapping)
    read = reader.read(shard)  # the purge has blanked these rows in input/
    reader.close()
    assert [row for row, url in enumerate(read["url"].to_pylist()) if url is None] == [2, 4, 7]
    restored = world.saved / "out/input"  # has all rows, like a Parquet list, which is not copied to input/
    for path in restored.iterdir():
        (world.out / "input" / path.name).unlink()
        (world.out / "input" / path.name).write_bytes(path.read_bytes())
    spec = ReadRows(plan.job.model_copy(update={"output": str(world.out)}), plan.mapping)
    stage = spec.open_all()
    batch = stage(ShardBatch(BatchInfo(shard), pa.table({})))
    stage.close()
    statuses = batch.table["status"].to_pylist()
    assert [row for row, status in enumerate(statuses) if status == "withdrawn"] == [2, 4, 7]
    fetched = pa.array([source.sha256(2) if row == 5 else None for row in range(12)])
    index = batch.table.schema.get_field_index("sha256")
    table = spec.gate()(batch.table.set_column(index, batch.table.schema.field(index), fetched))
    writer = ShardWriter(store, pa.schema([]), [], plan.job.images, "0" * 32, {})
    manifest = writer.commit(ShardBatch(BatchInfo(shard), table))
    assert (manifest.rows_in, manifest.pairs, manifest.rejects, manifest.withdrawn) == (12, 0, 8, 4)
    stored = pq.read_table(world.out / "rejects/000000004.parquet")
    assert stored["row_id"].to_pylist() == [f"4:{row}" for row in range(12) if row not in (2, 4, 5, 7)]


def test_rows_that_reappear_are_removed_by_the_next_purge(world: World) -> None:
    """A second call without lists applies earlier requests to the rows that exist now."""
    uids = world.write("uids.txt", [world.source.uid(1)])
    pairmill.purge(world.out, uids=uids, reason="asked for")
    for folder, name in (("pairs", "000000000.parquet"), ("manifests", "000000000.json")):
        (world.out / folder / name.replace(".", ".g1.", 1)).unlink(missing_ok=True)
        (world.out / folder / name).write_bytes((world.saved / "out" / folder / name).read_bytes())
    (world.out / "images/000000000.tar").write_bytes((world.saved / "out/images/000000000.tar").read_bytes())
    result = pairmill.purge(world.out)
    assert (result.purged.rows, result.purged.shards) == (1, [0])
    again = pairmill.purge(world.out)
    assert (again.purged.rows, again.purged.shards) == (0, [])
    assert len(list((world.out / "withdrawn").glob("*.request.parquet"))) == 2


def leave_running(store: Store, name: str, **changes: Any) -> str:
    """Write the file of a running purge. Returns its name."""
    record = {"host": os.uname().nodename, "pid": os.getpid(), "started_at": "2026-01-01T00:00:00", **changes}
    store.create(f"withdrawn/running-{name}.json", json.dumps(record).encode())
    return f"withdrawn/running-{name}.json"


def test_a_second_concurrent_purge_is_refused_and_a_dead_one_is_taken_over(world: World) -> None:
    uids, store = world.write("uids.txt", [world.source.uid(1)]), Store(str(world.out))
    name = leave_running(store, "a", pid=1)
    with pytest.raises(JobError, match="another purge has been running since 2026-01-01T00:00:00, as process 1 on "):
        pairmill.purge(world.out, uids=uids, reason="asked for")
    store.delete(name)
    name = leave_running(store, "b", host="elsewhere", pid=2**22 + 1)
    with pytest.raises(JobError, match=r"on elsewhere; wait until it ends\. If it was killed, delete "):
        pairmill.purge(world.out, uids=uids, reason="asked for")
    store.delete(name)
    assert store.list("withdrawn") == []
    name = leave_running(store, "c", pid=2**22 + 1)  # beyond the largest pid of Linux
    assert pairmill.purge(world.out, uids=uids, reason="asked for").purged.rows == 1
    assert not store.exists(name)


def test_at_most_one_of_several_simultaneous_purges_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates processes with threads. Before each round, a killed purge has left its file behind."""
    store, inside, most = Store(str(tmp_path)), list[int](), list[int]()
    monkeypatch.setattr(running, "_held", MagicMock())  # so that it never contains any path
    monkeypatch.setattr(running, "_is_alive", lambda pid: pid > 0)
    monkeypatch.setattr(os, "getpid", threading.get_ident)
    start = threading.Barrier(4)

    def purge_alone() -> None:
        start.wait()
        with suppress(JobError), running.only_purge(store):
            inside.append(1)
            time.sleep(0.002)  # lets the other threads catch up
            most.append(len(inside))
            inside.pop()

    for number in range(20):
        leave_running(store, f"killed-{number}", pid=-1)
        threads = [threading.Thread(target=purge_alone) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(most) <= {1}
    with running.only_purge(store):
        assert len(store.list("withdrawn")) == 1


def test_status_reports_generations_and_withdrawn_rows(world: World) -> None:
    uids = world.write("uids.txt", [world.source.uid(row) for row in (1, 3)])
    pairmill.purge(world.out, uids=uids, reason="asked for")
    done = CliRunner().invoke(app, ["status", str(world.out), "--json"])
    assert "generations of the shards: 3 at 0, 1 at 1" in done.stdout
    assert "2 rows withdrawn by 1 request\n" in done.stdout
    values = json.loads(done.stdout.splitlines()[-1])
    assert values["generations"] == {"0": 3, "1": 1}
    assert values["columns"] == {"b16": 4, "words": 4}
    assert values["statuses"]["withdrawn"] == 2
    assert (values["superseded"], values["unfinished_purges"]) == (0, 0)
    assert values["pairs"] + values["rejects"] + 2 == values["rows_in"]
    older = "manifests/000000000.json"
    (world.out / older).write_bytes((world.saved / "out" / older).read_bytes())
    assert f"`pairmill gc {world.out}` deletes" in CliRunner().invoke(app, ["status", str(world.out)]).stdout
    write_request(Store(str(world.out)), {}, "interrupted")
    text = CliRunner().invoke(app, ["status", str(world.out)]).stdout
    assert f"to finish it: pairmill purge {world.out}\n" in text
    assert "pairmill gc" not in text  # gc is refused until then


def test_a_purge_does_not_begin_without_the_right_to_delete(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(store: Store, name: str) -> None:
        raise PermissionError(13, "Access Denied", store.path(name))

    monkeypatch.setattr(Store, "delete", denied)
    uids = world.write("uids.txt", [world.source.uid(1)])
    done = CliRunner().invoke(app, ["purge", str(world.out), "--uids", str(uids), "--reason", "asked for"])
    assert done.exit_code == 1
    assert "a purge needs the right to delete objects. Nothing was withdrawn" in done.stderr
    assert not list((world.out / "withdrawn").glob("*.parquet"))
