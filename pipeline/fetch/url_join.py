"""From rows to the URLs that have to be fetched, and from what became of them back to rows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from pairmill.pipeline.common.arrow import binary_column
from pairmill.pipeline.fetch.fetcher import Fetched
from pairmill.pipeline.image.processor import Picture
from pairmill.pipeline.source.files import decode_lossy
from pairmill.schemas.pairs import FETCHED, IMAGE_COLUMN, KEPT_STATUS, PICTURE
from pairmill.schemas.status import Status


@dataclass(frozen=True, slots=True)
class Download:
    """What became of one URL: without the original bytes, with the stored picture."""

    status: Status
    detail: str | None
    fetched: Fetched | None = None
    original_bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    picture: Picture | None = None


_FETCHED: dict[str, Callable[[Download], Any]] = {
    "http_status": lambda download: download.fetched and download.fetched.http_status,
    "final_url": lambda download: download.fetched and download.fetched.final_url,
    "content_type": lambda download: download.fetched and download.fetched.content_type,
    "original_bytes": lambda download: download.original_bytes,
    "fetch_attempts": lambda download: download.fetched and download.fetched.attempts,
    "fetch_s": lambda download: download.fetched and download.fetched.seconds,
    "fetched_at": lambda download: download.fetched and download.fetched.fetched_at,
    "sha256": lambda download: download.sha256,
    "md5": lambda download: download.md5,
    "original_format": lambda download: download.picture and download.picture.original_format,
    "original_width": lambda download: download.picture and download.picture.original_width,
    "original_height": lambda download: download.picture and download.picture.original_height,
}
"""How each column of pairmill.schemas.pairs.FETCHED is read."""

_Verdict = tuple[str, str | None]


def urls_to_fetch(table: pa.Table, sha256_column: str | None) -> dict[str, frozenset[str]]:
    """The distinct URLs of rows that are `ok`, each with the SHA-256 that its rows expect; empty: any will do.

    `sha256_column`: the column of expected SHA-256 of the original bytes, in hex; None: there is none.
    """
    wanted: dict[str, set[str] | None] = {}
    for status, url, expected in zip(*_columns(table, sha256_column), strict=True):
        if status != KEPT_STATUS or url is None:
            continue
        digests = wanted.setdefault(url, set())
        if expected is None or digests is None:
            wanted[url] = None  # one row without an expectation takes whatever comes
        else:
            digests.add(expected)
    return {url: frozenset(digests or ()) for url, digests in wanted.items()}


def interleave_hosts(urls: Iterable[str]) -> list[str]:
    """The URLs with their hosts taking turns, so that one host does not get its whole share at once."""
    by_host: dict[str, list[str]] = {}
    for url in urls:
        by_host.setdefault(_host(url), []).append(url)
    return [url for url in chain.from_iterable(zip_longest(*by_host.values())) if url is not None]


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def fill_columns(table: pa.Table, downloads: Mapping[str, Download], sha256_column: str | None) -> pa.Table:
    """The table with verdict, fetched, picture and image columns of its `ok` rows; the other rows as they were."""
    statuses, urls, expected = _columns(table, sha256_column)
    details = table["status_detail"].to_pylist()
    verdicts: list[_Verdict] = list(zip(statuses, details, strict=True))
    rows: list[Download | None] = [None] * table.num_rows
    for row, (status, url) in enumerate(zip(statuses, urls, strict=True)):
        if status != KEPT_STATUS:
            continue
        rows[row] = None if url is None else downloads[url]
        verdicts[row] = _verdict(rows[row], expected[row])
    pictures = [
        row.picture if row is not None and verdict[0] == KEPT_STATUS else None
        for row, verdict in zip(rows, verdicts, strict=True)
    ]
    columns = {
        "status": [verdict[0] for verdict in verdicts],
        "status_detail": [verdict[1] for verdict in verdicts],
        **{name: [row and _FETCHED[name](row) for row in rows] for name in FETCHED.names},
        **{name: [picture and getattr(picture, name) for picture in pictures] for name in PICTURE.names},
    }
    for name, values in columns.items():
        table = _replace(table, name, pa.array(values, table.schema.field(name).type))
    images = [None if picture is None else picture.image for picture in pictures]
    return _replace(table, IMAGE_COLUMN.name, binary_column(images))


def _verdict(download: Download | None, expected: str | None) -> _Verdict:
    if download is None:
        return Status.URL_MISSING.value, None
    if expected is not None and download.sha256 is not None and download.sha256 != expected:
        return Status.CONTENT_CHANGED.value, f"expected sha256 {expected[:64]}"
    return download.status.value, download.detail


def _columns(table: pa.Table, sha256_column: str | None) -> tuple[list[str], list[str | None], list[str | None]]:
    """Status, URL and expected SHA-256 (lower case) of every row."""
    expected: list[str | None] = [None] * table.num_rows
    if sha256_column:
        digests = decode_lossy(table[sha256_column].combine_chunks()).to_pylist()
        expected = [digest and digest.strip().lower() for digest in digests]
    return table["status"].to_pylist(), table["url"].to_pylist(), [digest or None for digest in expected]


def _replace(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), values)
