"""Tests reading the rows of a shard: their uids and problems, and slices of large files."""

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.columns import map_columns
from pairmill.pipeline.source.cursor import Cursor, ReadError, UnreachableInput
from pairmill.pipeline.source.files import MALFORMED_COLUMN, SourceError, inspect_parquet
from pairmill.pipeline.source.rows import ShardReader
from pairmill.pipeline.source.uid import caption_uid, own_uid, pair_uid
from pairmill.schemas.errors import FailureKind
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.manifest import Shard
from pairmill.schemas.pairs import FETCHED, PICTURE, in_flight_schema

Read = Callable[..., pa.Table]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """A function that writes a table to a Parquet file and reads it as one shard."""

    def read_as_shard(table: pa.Table | dict[str, object], number: int = 7, **source: str) -> pa.Table:
        path = str(tmp_path / "a.parquet")
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path)
        facts = map_columns(SourceConfig(paths=["-"], **source), [inspect_parquet(path, Files())], needs_license=False)
        reader = ShardReader(Store(str(tmp_path / "out")), facts)
        result = reader.read(Shard(number, path, 0, pq.read_metadata(path).num_rows, Files().fingerprint(path)))
        reader.close()
        assert result.schema.equals(in_flight_schema(facts.extra))
        result.validate(full=True)
        return result

    return read_as_shard


def column(table: pa.Table, name: str) -> list[Any]:
    return list(table[name].to_pylist())


def invalid(raw: list[bytes], data_type: pa.DataType) -> pa.Array:
    """Text with bytes that are not UTF-8, as careless writers leave in string columns."""
    binary = pa.array(raw, pa.large_binary() if data_type == pa.large_string() else pa.binary())
    return pa.Array.from_buffers(data_type, len(raw), binary.buffers())


def test_the_table_has_the_in_flight_schema_with_fetched_columns_null(read: Read) -> None:
    table = read({"url": ["u"], "caption": ["a &amp;  b"], "WIDTH": [3], "more": [[1, 2]]})
    row = table.to_pylist()[0]
    assert (row["row_id"], row["url"], row["caption"], row["caption_clean"]) == ("7:0", "u", "a &amp;  b", "a & b")
    assert (row["caption_index"], row["status"], row["status_detail"], row["is_pair"]) == (0, "ok", None, False)
    assert (row["source_WIDTH"], row["more"]) == (3, [1, 2])
    assert all(row[name] is None for name in [*FETCHED.names, *PICTURE.names, "image"])


def test_the_uid_is_blake2b_over_the_length_prefixed_bytes() -> None:
    data = b"\x01" + (1).to_bytes(8, "little") + b"u" + b"\x00"
    assert pair_uid(b"u", None) == hashlib.blake2b(data, digest_size=16).hexdigest()
    assert pair_uid(b"http://a/1.jpg", b"a cat") == "029bea6a436f563b7383fb453dd91c03"


@given(st.lists(st.tuples(st.none() | st.binary(max_size=4), st.none() | st.binary(max_size=4)), unique=True))
def test_different_pairs_have_different_uids(pairs: list[tuple[bytes | None, bytes | None]]) -> None:
    assert len({pair_uid(*pair) for pair in pairs}) == len(pairs)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_the_uid_does_not_depend_on_shard_or_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], shard_rows: int
) -> None:
    path = str(tmp_path_factory.mktemp("uid") / "a.parquet")
    table = pa.table({"url": [f"u{row}" for row in order], "caption": [None if row % 3 else "c" for row in order]})
    pq.write_table(table, path, row_group_size=5)
    facts = map_columns(SourceConfig(paths=["-"]), [inspect_parquet(path, Files())], needs_license=False)
    reader = ShardReader(Store("/nowhere"), facts)
    starts = range(0, 12, shard_rows)
    shards = [
        Shard(n, path, first, min(shard_rows, 12 - first), Files().fingerprint(path)) for n, first in enumerate(starts)
    ]
    found = {row["url"]: row["uid"] for shard in shards for row in reader.read(shard).to_pylist()}
    reader.close()
    assert found == {f"u{row}": pair_uid(b"u%d" % row, None if row % 3 else b"c") for row in range(12)}


@pytest.mark.parametrize(
    "data_type",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_text_of_any_arrow_type_results_in_the_same_rows(read: Read, data_type: pa.DataType) -> None:
    values = pa.array(["é", None, "", "x"]).cast(data_type)
    table = read(pa.table({"url": values, "caption": values}))
    assert column(table, "url") == column(table, "caption") == ["é", None, "", "x"]
    raws = [b"\xc3\xa9", None, b"", b"x"]
    assert column(table, "uid") == [pair_uid(raw, raw) for raw in raws]
    assert column(table, "status") == ["ok"] * 4


@pytest.mark.parametrize("data_type", [pa.string(), pa.large_string(), pa.binary()])
def test_text_that_is_not_utf8_is_refused_and_kept_readable(read: Read, data_type: pa.DataType) -> None:
    urls = invalid([b"http://\xff", b"b", b"c\xff"], data_type)
    captions = invalid([b"a", b"caf\xe9 au lait", b"\xff"], data_type)
    table = read(pa.table({"url": urls, "caption": captions, "extra": invalid([b"\xff", b"x", b"y"], pa.string())}))
    assert column(table, "status") == ["url_invalid", "caption_invalid", "caption_invalid"]
    assert column(table, "status_detail") == ["not UTF-8"] * 3
    assert column(table, "url") == ["http://�", "b", "c�"]
    assert column(table, "caption") == ["a", "caf� au lait", "�"]
    assert column(table, "extra") == ["�", "x", "y"]
    assert column(table, "uid")[0] == pair_uid(b"http://\xff", b"a")


def test_urls_and_captions_that_are_too_long_are_refused_and_truncated(read: Read) -> None:
    urls = ["u" * 8_192, "u" * 8_193, "é" * 5_000, "ok"]
    captions = ["c", "c", "c", "c" * 262_145]
    table = read({"url": urls, "caption": captions})
    assert column(table, "status") == ["ok", "url_invalid", "url_invalid", "caption_invalid"]
    assert column(table, "status_detail")[1:] == ["longer than 8,192 bytes"] * 2 + ["longer than 262,144 bytes"]
    assert [len(url) for url in column(table, "url")] == [8_192, 8_192, 4_096, 2]
    assert len(column(table, "caption")[3]) == 8_192
    assert column(table, "uid")[1] == pair_uid(urls[1].encode(), b"c")
    assert column(read({"url": ["u"], "caption": ["c" * 262_144]}), "status") == ["ok"]


@pytest.mark.parametrize("data_type", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.binary())])
def test_a_list_of_captions_becomes_one_row_per_caption(read: Read, data_type: pa.DataType) -> None:
    captions = pa.array([["a", "b", "a"], [], None, [None], ["c"]]).cast(data_type)
    table = read(pa.table({"url": list("uvwxy"), "caption": captions, "n": [1, 2, 3, 4, 5]}))
    assert column(table, "row_id") == ["7:0:0", "7:0:1", "7:0:2", "7:1:0", "7:2:0", "7:3:0", "7:4:0"]
    assert column(table, "caption") == ["a", "b", "a", None, None, None, "c"]
    assert column(table, "caption_index") == [0, 1, 2, 0, 0, 0, 0]
    assert column(table, "url") == list("uuuvwxy")
    assert column(table, "n") == [1, 1, 1, 2, 3, 4, 5]
    assert column(table, "uid")[0] == column(table, "uid")[2] != column(table, "uid")[1]


def test_captions_can_be_fixed_size_lists(read: Read) -> None:
    captions = pa.array([["a", "b"], ["c", None]], pa.list_(pa.string(), 2))
    assert column(read(pa.table({"url": ["u", "v"], "caption": captions})), "caption") == ["a", "b", "c", None]


def test_only_the_row_with_too_many_captions_is_refused(read: Read) -> None:
    table = read({"url": list("uvw"), "caption": [["a"], [f"{number}" for number in range(300_000)], ["b", "c"]]})
    assert column(table, "row_id") == ["7:0:0", "7:1:0", "7:2:0", "7:2:1"]
    assert column(table, "status") == ["ok", "row_malformed", "ok", "ok"]
    assert column(table, "status_detail")[1] == "300,000 captions, more than 1,000"
    assert column(table, "caption") == ["a", None, "b", "c"]


def test_only_the_row_that_would_make_the_shard_too_large_is_refused(read: Read) -> None:
    captions = [["a", "b"], [f"{number}" for number in range(1000)], ["c", "d"]]
    table = read({"url": ["u", "v" * 1_500_000, "w"], "caption": captions, "carried": ["x", "y", "z"]})
    assert column(table, "status") == ["ok", "ok", "row_malformed", "ok", "ok"]
    assert column(table, "carried") == ["x", "x", "y", "z", "z"]


@pytest.mark.parametrize("text", [pa.string_view(), pa.binary_view()])
def test_views_are_read_as_plain_types(read: Read, text: pa.DataType) -> None:
    values = pa.array([b"a", b"b"], pa.binary()).cast(text)
    lists = pa.array([["x", "y"], ["z"]], pa.list_(pa.string_view()))
    table = read(pa.table({"url": values, "caption": lists, "extra": values, "deep": lists, "ids": [1, 2]}))
    assert column(table, "url") == ["a", "a", "b"]
    assert column(table, "caption") == ["x", "y", "z"]
    assert [str(value) for value in column(table, "deep")] == ["['x', 'y']", "['x', 'y']", "['z']"]
    assert table.schema.field("extra").type == (pa.string() if text == pa.string_view() else pa.binary())


def test_invalid_utf8_nested_in_a_carried_column_becomes_readable(read: Read) -> None:
    texts = invalid([b"ok", b"\xff", b"x\xfe"], pa.string())
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2, 3]), texts)
    columns = {
        "list": lists,
        "struct": pa.StructArray.from_arrays([texts, lists], ["a", "b"]),
        "map": pa.MapArray.from_arrays(pa.array([0, 1, 2, 3]), pa.array(["k", "k", "k"]), texts),
        "view": texts.cast(pa.binary()).cast(pa.binary_view()).cast(pa.string_view(), safe=False),
    }
    table = read(pa.table({"url": list("uvw"), **columns}))
    assert column(table, "list") == [["ok", "\ufffd"], [], ["x\ufffd"]]
    assert column(table, "struct")[1] == {"a": "\ufffd", "b": []}
    assert column(table, "map") == [[("k", "ok")], [("k", "\ufffd")], [("k", "x\ufffd")]]
    assert column(table, "view") == ["ok", "\ufffd", "x\ufffd"]


def test_an_invalid_checksum_is_refused_and_quoted(read: Read) -> None:
    digests = ["0" * 64, "AB" * 32, "", None, "0" * 63, "sha256:" + "0" * 64]
    table = read({"url": list("abcdef"), "digest": digests}, sha256_column="digest")
    assert column(table, "status") == ["ok"] * 4 + ["row_malformed"] * 2
    assert column(table, "status_detail")[4] == "not a SHA-256 in hex: " + "0" * 63


def test_a_file_without_the_checksum_column_is_an_error_that_names_it(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("1.parquet", "2.parquet")]
    for path, name in zip(paths, ("sha256", "SHA256"), strict=True):
        pq.write_table(pa.table({"url": ["u"], name: ["0" * 64]}), path)
    source = SourceConfig(paths=["-"], sha256_column="sha256")
    with pytest.raises(SourceError, match=r"2\.parquet: no column 'sha256'"):
        map_columns(source, [inspect_parquet(path, Files()) for path in paths], needs_license=False)


def test_own_uids_are_normalized_and_invalid_uids_are_refused(read: Read) -> None:
    good = "0123456789ABCDEF0123456789abcdef"
    given_ids = [good, str(uuid.UUID(int=5)), "12", None, good[:-1] + "g", f" {good}", "é", good]
    table = read({"url": list("abcdefgh"), "id": given_ids}, uid_column="id")
    refused = "uid_invalid"
    assert column(table, "status") == ["ok", "ok", *[refused] * 5, "ok"]
    assert column(table, "uid")[:3] == [good.lower(), "0" * 31 + "5", pair_uid(b"c", None)]
    assert column(table, "uid")[7] == good.lower()
    assert column(table, "status_detail")[2:7] == ["12", "null", good[:-1] + "g", good, "é"]
    assert "id" not in table.column_names


@pytest.mark.parametrize("ids", [pa.array([1, 2]), pa.array([0.5, None]), pa.array([[1], [2]]), pa.nulls(2)])
def test_uids_that_are_not_text_make_each_row_invalid(read: Read, ids: pa.Array) -> None:
    assert column(read(pa.table({"url": ["a", "b"], "id": ids}), uid_column="id"), "status") == ["uid_invalid"] * 2


def test_uids_of_16_bytes_are_converted_to_hex(read: Read) -> None:
    ids = [uuid.UUID(int=1), uuid.UUID(int=2)]
    for values in (pa.array([i.bytes for i in ids], pa.binary(16)), pa.array([i.bytes for i in ids], pa.uuid())):
        assert column(read(pa.table({"url": ["a", "b"], "id": values}), uid_column="id"), "uid") == [i.hex for i in ids]


def test_the_other_captions_of_a_row_with_a_uid_get_uids_derived_from_it(read: Read) -> None:
    own = "0" * 32
    table = read({"url": ["u"], "caption": [["a", "b"]], "id": [own]}, uid_column="id")
    expected = hashlib.blake2b(f"{own}:1".encode(), digest_size=16).hexdigest()
    assert column(table, "uid") == [own, expected] == [caption_uid(own, 0), caption_uid(own, 1)]


@given(st.text(max_size=40))
def test_a_given_uid_becomes_32_hex_digits_or_none(text: str) -> None:
    found = own_uid(text)
    assert found is None or (len(found) == 32 and set(found) <= set("0123456789abcdef"))


def test_malformed_rows_stay_in_order_and_are_not_treated_as_duplicates(read: Read) -> None:
    table = read(
        {"url": ["a", None, None, None], "caption": ["x", None, None, None], MALFORMED_COLUMN: [None, "p", "p", None]}
    )
    assert column(table, "status") == ["ok", "row_malformed", "row_malformed", "ok"]
    assert column(table, "status_detail") == [None, "p", "p", None]
    assert MALFORMED_COLUMN not in table.column_names


def test_dictionaries_are_replaced_by_their_values_at_any_depth(read: Read) -> None:
    words = pa.array(["x", None]).dictionary_encode()
    lists = pa.ListArray.from_arrays([0, 1, 2], words)
    table = read(pa.table({"url": ["u", "v"], "d": words, "l": lists}))
    assert [table.schema.field(name).type for name in "dl"] == [pa.string(), pa.list_(pa.string())]
    assert (column(table, "d"), column(table, "l")) == (["x", None], [["x"], [None]])


def test_extra_columns_keep_their_types(read: Read) -> None:
    columns = {
        "s": pa.array([{"a": 1}, None]),
        "n": pa.nulls(2),
        "t": pa.array([1, 2], pa.timestamp("ms", "UTC")),
        "f": pa.array([b"ab", b"cd"], pa.binary(2)),
    }
    table = read(pa.table({"url": ["u", "v"], **columns}))
    for name, values in columns.items():
        assert table.schema.field(name).type == values.type
        assert column(table, name) == values.to_pylist()


def test_missing_columns_become_null_and_narrower_types_are_widened(tmp_path: Path) -> None:
    one, two = str(tmp_path / "1.parquet"), str(tmp_path / "2.parquet")
    pq.write_table(pa.table({"url": ["u"], "a": [0.5], "b": ["x"]}), one)
    pq.write_table(pa.table({"URL": ["v"], "a": [1]}), two)
    facts = map_columns(
        SourceConfig(paths=["-"]), [inspect_parquet(one, Files()), inspect_parquet(two, Files())], needs_license=False
    )
    reader = ShardReader(Store("/nowhere"), facts)
    (row,) = reader.read(Shard(0, two, 0, 1, Files().fingerprint(two))).to_pylist()
    reader.close()
    assert (row["url"], row["a"], row["b"]) == ("v", 1.0, None)


@pytest.fixture
def large(tmp_path: Path) -> str:
    """A file with one row group of 300,000 rows. The row groups of published lists have a million."""
    path = str(tmp_path / "large.parquet")
    urls = pa.array([f"http://host/{row:032d}.jpg" for row in range(300_000)])
    pq.write_table(pa.table({"url": urls}), path, row_group_size=300_000, use_dictionary=False, compression="none")
    return path


def take(cursor: Cursor, first_row: int, num_rows: int) -> list[int]:
    urls = cursor.rows(first_row, num_rows)["url"].to_pylist()
    return [int(url[12:44]) for url in urls]


def test_reading_in_order_decodes_a_row_group_once_with_little_memory(large: str) -> None:
    cursor = Cursor(Store("/nowhere"), large, Files().fingerprint(large))
    size = Path(large).stat().st_size
    before, peak, decoded = pa.total_allocated_bytes(), 0, 0
    next_batch = cursor._next_batch

    def counted() -> pa.RecordBatch:
        nonlocal decoded
        batch = next_batch()
        decoded += batch.num_rows
        return batch

    cursor._next_batch = counted  # type: ignore[method-assign]
    for first in range(0, 300_000, 4096):
        num_rows = min(4096, 300_000 - first)
        assert take(cursor, first, num_rows)[0] == first
        peak = max(peak, pa.total_allocated_bytes() - before)
    cursor.close()
    assert decoded == 300_000
    assert peak < size / 3


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=6),
)
def test_any_slices_can_be_read_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, groups: list[int], wanted: list[tuple[int, int]]
) -> None:
    path = str(tmp_path_factory.mktemp("cursor") / "a.parquet")
    table = pa.table({"url": [f"http://host/{row:032d}.jpg" for row in range(sum(groups))]})
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for rows in groups:
            writer.write_table(table.slice(start, rows))
            start += rows
    cursor = Cursor(Store("/nowhere"), path, Files().fingerprint(path))
    for first, num_rows in wanted:
        if first + num_rows <= len(table):
            assert take(cursor, first, num_rows) == list(range(first, first + num_rows))
    cursor.close()


def test_a_damaged_page_is_an_error_that_names_the_file_and_other_pages_can_still_be_read(tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    table = pa.table({"url": [f"http://host/{row:032d}.jpg" for row in range(20_000)]})
    pq.write_table(table, path, row_group_size=10_000, use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 0xFF
    path.write_bytes(content)
    cursor = Cursor(Store("/nowhere"), str(path), Files().fingerprint(str(path)))
    with pytest.raises(ReadError, match=r"damaged\.parquet: rows 0 to 10000 cannot be read"):
        cursor.rows(0, 10_000)
    assert take(cursor, 15_000, 2) == [15_000, 15_001]
    cursor.close()


def test_a_file_that_changed_after_planning_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"url": ["u"] * 5}), path)
    known = Files().fingerprint(path)
    pq.write_table(pa.table({"url": ["u"] * 6, "b": [1] * 6}), path)
    with pytest.raises(ReadError, match=r"a\.parquet: has changed since it was planned"):
        Cursor(Store("/nowhere"), path, known)
    cursor = Cursor(Store("/nowhere"), path, Files().fingerprint(path))
    with pytest.raises(ReadError, match=r"has 6 rows, but rows up to 7 are planned"):
        cursor.rows(5, 2)
    cursor.close()


def test_unreachable_storage_is_not_reported_as_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").mkdir()  # root, too, cannot open a folder as a file, whatever the permissions
    with pytest.raises(UnreachableInput, match=r"a\.parquet: cannot be opened") as raised:
        Cursor(Store("/nowhere"), str(tmp_path / "a.parquet"), "blake2b:1:x")
    assert Failure.of(raised.value).kind is FailureKind.MACHINE


def test_a_missing_or_truncated_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(ReadError, match=r"a\.parquet: cannot be opened"):
        Cursor(Store("/nowhere"), str(path), "blake2b:1:x")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ReadError, match=r"a\.parquet: not a complete Parquet file"):
        Cursor(Store("/nowhere"), str(path), Files().fingerprint(str(path)))
