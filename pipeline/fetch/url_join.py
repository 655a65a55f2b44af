"""Collects the URLs to fetch from the rows: each URL once per shard, hosts interleaved."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest

import pyarrow as pa

from pairmill.pipeline.common.url_parser import parse_url
from pairmill.pipeline.source.files import decode_lossy
from pairmill.schemas.pairs import KEPT_STATUS


@dataclass(frozen=True, slots=True)
class RowToFetch:
    """A row that is still `ok`."""

    index: int
    """Index of the row in its shard."""
    url: str | None
    sha256: str | None
    """Expected digest of the original bytes, in lower-case hex; None: any bytes are accepted."""


def rows_to_fetch(table: pa.Table, sha256_column: str | None) -> Iterator[RowToFetch]:
    """The rows of an in-flight table whose status is `ok`, in order.

    `sha256_column`: the column with the expected SHA-256 of the original bytes, in hex; None: there is none.
    """
    rows = zip(
        table["status"].to_pylist(), table["url"].to_pylist(), _expected_sha256(table, sha256_column), strict=True
    )
    for index, (status, url, sha256) in enumerate(rows):
        if status == KEPT_STATUS:
            yield RowToFetch(index, url, sha256)


def urls_to_fetch(table: pa.Table, sha256_column: str | None) -> dict[str, frozenset[str]]:
    """The distinct URLs of the `ok` rows, each with the SHA-256 digests that its rows expect (empty: any bytes will
    do)."""
    expected: dict[str, set[str]] = {}
    unconditional = set[str]()  # one row without an expectation accepts any bytes
    for row in rows_to_fetch(table, sha256_column):
        if row.url is None:
            continue
        digests = expected.setdefault(row.url, set())
        if row.sha256 is None:
            unconditional.add(row.url)
        else:
            digests.add(row.sha256)
    return {url: frozenset() if url in unconditional else frozenset(digests) for url, digests in expected.items()}


def interleave_hosts(urls: Iterable[str]) -> list[str]:
    """The URLs, one from each host in turn, so no host gets all its requests in a burst."""
    by_host: dict[str, list[str]] = {}
    for url in urls:
        by_host.setdefault(parse_url(url).host, []).append(url)
    return [url for url in chain.from_iterable(zip_longest(*by_host.values())) if url is not None]


def _expected_sha256(table: pa.Table, column: str | None) -> list[str | None]:
    """The expected SHA-256 of each row, in lower-case hex; None where any bytes will do."""
    if not column:
        return [None] * table.num_rows
    digests = decode_lossy(table[column].combine_chunks()).to_pylist()
    return [(digest or "").strip().lower() or None for digest in digests]
