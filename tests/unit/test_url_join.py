"""Tests how the URLs to fetch are derived from the rows."""

from collections import Counter
from urllib.parse import urlsplit

import pyarrow as pa

from pairmill.pipeline.common.arrow import binary_column
from pairmill.pipeline.fetch.url_join import interleave_hosts, urls_to_fetch
from pairmill.schemas.pairs import in_flight_schema


def test_urls_of_different_hosts_are_interleaved() -> None:
    urls = [f"http://big/{index}" for index in range(6)] + ["http://a/1", "http://b/1", "http://a/2", "http://[bad"]
    interleaved = interleave_hosts(urls)
    assert Counter(interleaved) == Counter(urls)
    assert {urlsplit(url).hostname for url in interleaved[:3]} == {"big", "a", "b"}
    assert [url for url in interleaved if "big" in url] == urls[:6]


def table_of(rows: list[tuple[str, str | None, str | None]]) -> pa.Table:
    schema = in_flight_schema(pa.schema([("digest", pa.string())]))
    columns = {field.name: pa.nulls(len(rows), field.type) for field in schema}
    for name, values in zip(("status", "url", "digest"), zip(*rows, strict=True), strict=True):
        columns[name] = pa.array(values, pa.string())
    return pa.table(columns, schema=schema)


def test_each_url_comes_with_the_digests_that_its_rows_expect() -> None:
    rows = [
        ("ok", "u1", "AA "),
        ("ok", "u1", "bb"),
        ("ok", "u2", "aa"),
        ("ok", "u2", None),
        ("ok", "u2", "cc"),
        ("ok", "u3", ""),
        ("caption_missing", "u4", "aa"),
        ("ok", None, "aa"),
    ]
    any_ = frozenset[str]()
    assert urls_to_fetch(table_of(rows), "digest") == {"u1": {"aa", "bb"}, "u2": any_, "u3": any_}
    assert urls_to_fetch(table_of(rows), None) == {"u1": any_, "u2": any_, "u3": any_}


def test_binary_columns_keep_nulls_and_empty_values() -> None:
    for values in ([], [None], [b""], [b"ab", None, b"", b"c" * 1000, None], [b"x"] * 17):
        column = binary_column(values)
        column.validate(full=True)
        assert column.to_pylist() == values
        assert column.null_count == values.count(None)
