"""Hashes the captions, picture and embeddings of a withdrawn row, which other files could still contain, so that
`verify --purged` can look for them when the row itself is gone.

Other values, such as a language or the name of a class, do not say which row they came from.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.purge.keys import digest
from pairmill.schemas.pairs import STORED, is_embedding
from pairmill.schemas.purge import WITHDRAWN_SCHEMA

CAPTION, PICTURE, VECTOR = "caption", "picture", "vector"
"""The names that go into these digests (see `keys.py`)."""
_CAPTION_PREFIX = f"{CAPTION}\0".encode()
_CAPTION_COLUMNS = ("caption", "caption_clean")


def witnesses(
    store: Store, rows: pa.Table, added: Sequence[pa.Table] = (), written_captions: Collection[str] = ()
) -> pa.Table:
    """The hashes of withdrawn rows (WITHDRAWN_SCHEMA). `rows`: rows of a pairs or rejects file; `added`: the same rows
    of its added columns; `written_captions`: those added columns that are captions written by models."""
    captions = [set[bytes]() for _ in range(rows.num_rows)]
    vectors = [set[bytes]() for _ in range(rows.num_rows)]
    for table in (rows, *added):
        for field, column in zip(table.schema, table.columns, strict=True):
            if field.name in _CAPTION_COLUMNS or field.name in written_captions:
                _add(captions, caption_digests(column.to_pylist()))
            elif is_embedding(field):
                _add(vectors, vector_digests(column))
    columns = [
        rows["row_id"].to_pylist(),
        [digest("uid", uid.encode()) for uid in rows["uid"].to_pylist()],
        [sorted(each) for each in captions],
        [[found] if found else [] for found in _pictures(store, rows)],
        [sorted(each) for each in vectors],
    ]
    return pa.table(columns, schema=WITHDRAWN_SCHEMA)


def caption_digests(texts: Sequence[str | None]) -> list[bytes | None]:
    """The digest of each caption; None for null and empty captions."""
    return [caption_digest(text) if text else None for text in texts]


def caption_digest(text: str) -> bytes:
    """The digest of a caption, as in `keys.digest`, which is slower."""
    return hashlib.sha256(_CAPTION_PREFIX + text.encode("utf-8", "surrogatepass")).digest()


def vector_digests(column: pa.ChunkedArray | pa.Array) -> list[bytes | None]:
    """The digest of each vector of an embedding column (float16 [dim]); None for null."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return []
    dim, valid = array.type.list_size, array.is_valid().to_pylist()
    values = np.asarray(array.values.to_numpy(zero_copy_only=False), np.float16)
    values = values[array.offset * dim :][: len(array) * dim].reshape(len(array), dim)
    return [digest(VECTOR, row.tobytes()) if is_valid else None for row, is_valid in zip(values, valid, strict=True)]


def picture_digest(picture: bytes) -> bytes:
    """The digest of a stored picture."""
    return digest(PICTURE, picture)


def _pictures(store: Store, rows: pa.Table) -> Iterator[bytes | None]:
    """The digest of each row's picture; None if the dataset itself does not store one."""
    if "image_tar" not in rows.column_names:
        yield from [None] * rows.num_rows
        return
    places = [rows[name].to_pylist() for name in STORED.names]
    for tar, offset, length in zip(*places, strict=True):
        is_ours = tar is not None and tar.startswith("images/") and offset is not None
        yield picture_digest(store.files.read_range(store.path(tar), offset, length)) if is_ours else None


def _add(found: Sequence[set[bytes]], digests: Sequence[bytes | None]) -> None:
    for each, one in zip(found, digests, strict=True):
        if one is not None:
            each.add(one)
