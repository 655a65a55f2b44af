"""Finds the URLs and captions that several pictures of a corpus share, so that their uids can include the picture.

A URL may be a placeholder, or the page where several pictures appeared. Different pictures, even in different shards,
would then have the same uid, and all but one would be lost as duplicates. So the planner finds the uids of such rows in
the whole input and writes them to `input/` for all workers. Rows whose URL and caption are unique keep the uid that a
build of the same list gives them.
"""

import hashlib
import io
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.columns import columns_of
from pairmill.pipeline.source.cursor import resolve
from pairmill.pipeline.source.mapping import ColumnMapping, IndexedPictures, NoPictures, PairsPictures, WebPictures
from pairmill.pipeline.source.row_group_cost import bounded_batches
from pairmill.pipeline.source.texts import raw_byte_lists, raw_bytes
from pairmill.pipeline.source.uid import is_blank, pair_uid

_PREFIX_CHARS = 16
"""Number of leading hex digits of a uid that are compared (64 bits). If two unique pairs agree in them, their uids
include the picture too, which is harmless."""


@dataclass(frozen=True, slots=True)
class SharedUrls:
    """The uids that do not identify a single picture."""

    prefixes: npt.NDArray[np.uint64]
    """[n], sorted."""

    def __contains__(self, uid: str) -> bool:
        if not len(self.prefixes):
            return False
        prefix = np.uint64(_prefix(uid))
        place = int(np.searchsorted(self.prefixes, prefix))
        return place < len(self.prefixes) and self.prefixes[place] == prefix

    @classmethod
    def load(cls, store: Store, mapping: ColumnMapping) -> "SharedUrls":
        """Load the shared URLs of the newest plan."""
        if mapping.shared_urls is None:
            return cls(np.empty(0, np.uint64))
        with store.files.open(store.path(mapping.shared_urls)) as file:
            return cls(pq.read_table(file)["prefix"].to_numpy())


def note_shared_urls(store: Store, uris: Iterable[str], mapping: ColumnMapping) -> str | None:
    """Write the shared URLs of all files of a plan. Returns the file's name, or None if no URLs are shared.

    Reads the URL and caption columns, and keeps eight bytes per row in memory.
    """
    if isinstance(mapping.pictures, (WebPictures, NoPictures, PairsPictures)):
        return None  # there are no pictures, or rows have their own uids
    if mapping.uid_column is not None and not isinstance(mapping.pictures, IndexedPictures):
        return None
    found = array("Q")
    for uri in uris:
        for table in _tables(store, uri, mapping):
            found.extend(_prefix(uid) for uid in _uids(table, mapping))
    values, counts = np.unique(np.frombuffer(found, np.uint64), return_counts=True)
    shared = values[counts > 1]
    if not len(shared):
        return None
    data = io.BytesIO()
    pq.write_table(pa.table({"prefix": shared}), data, compression="zstd")
    name = f"input/shared-urls-{hashlib.blake2b(shared.tobytes(), digest_size=8).hexdigest()}.parquet"
    store.create(name, data.getvalue())
    return name


def _tables(store: Store, uri: str, mapping: ColumnMapping) -> Iterator[pa.Table]:
    with store.files.open(resolve(store, uri)) as file, pq.ParquetFile(file) as parquet:
        columns = columns_of(mapping, parquet.schema_arrow.names)
        names = [name for name in (columns.url, columns.caption, columns.uid) if name is not None]
        if columns.url is None:
            return
        for batch in bounded_batches(uri, file, parquet, names, range(parquet.num_row_groups)):
            yield pa.Table.from_batches([batch])


def _uids(table: pa.Table, mapping: ColumnMapping) -> Iterator[str]:
    """The uids computed from URL and caption, for rows that have a URL and no uid of their own."""
    columns = columns_of(mapping, table.schema.names)
    assert columns.url is not None
    if table[columns.url].null_count == table.num_rows:
        return
    urls = raw_bytes(table[columns.url]).to_pylist()
    own = [None] * len(urls) if columns.uid is None else table[columns.uid].to_pylist()
    for url, captions, uid in zip(urls, _captions(table, columns.caption), own, strict=True):
        if uid is None and not is_blank(url):
            yield from {pair_uid(url, caption) for caption in captions}


def _captions(table: pa.Table, column: str | None) -> list[list[bytes | None]]:
    """The captions of each row; a single null for a row without captions."""
    if column is None:
        return [[None]] * table.num_rows
    if pa.types.is_nested(table[column].type):
        return [captions or [None] for captions in raw_byte_lists(table[column]).to_pylist()]
    return [[caption] for caption in raw_bytes(table[column]).to_pylist()]


def _prefix(uid: str) -> int:
    return int(uid[:_PREFIX_CHARS], 16)
