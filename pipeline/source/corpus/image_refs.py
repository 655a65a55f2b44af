"""Adds image references to a shard's rows, or the pictures themselves if they are in Parquet."""

import re
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.files import Files, join
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.mapping import (
    ALTERNATES_COLUMN,
    ColumnPictures,
    IndexedPictures,
    PairsPictures,
    PictureSource,
)
from pairmill.pipeline.source.planned import load
from pairmill.pipeline.source.texts import raw_bytes
from pairmill.schemas.pairs import IMAGE_COLUMN, STORED

_OWN_TAR = re.compile(r"images/\d{9}(\.g\d+)?(\.[0-9a-f]{32})?\.tar")


def with_image_refs(rows: pa.Table, table: pa.Table, pictures: PictureSource, uri: str, files: Files) -> pa.Table:
    """`rows` (in_flight_schema) plus the columns of STORED, and ALTERNATES_COLUMN if the index has it. `table` has the
    input's columns for the same rows.

    A reference to a picture in Parquet has a file but no offset; the row identifies the picture.
    """
    image_refs = [pa.nulls(rows.num_rows, field.type) for field in STORED]
    if isinstance(pictures, (IndexedPictures, PairsPictures)):
        image_refs = [table[name].combine_chunks().cast(STORED.field(name).type) for name in STORED.names]
    if isinstance(pictures, PairsPictures):
        image_refs[0] = _resolve(image_refs[0], uri.rpartition("/pairs/")[0], files)
    if isinstance(pictures, ColumnPictures):
        image = _bytes_of(table[pictures.column])
        rows = rows.set_column(rows.schema.get_field_index(IMAGE_COLUMN.name), IMAGE_COLUMN, image)
        image_refs[0] = pc.if_else(image.is_valid(), uri, pa.scalar(None, pa.string()))
        image_refs[2] = pc.binary_length(image).cast(pa.int64())
    for field, column in zip(STORED, image_refs, strict=True):
        rows = rows.append_column(field, column)
    if isinstance(pictures, IndexedPictures) and ALTERNATES_COLUMN in table.schema.names:
        rows = rows.append_column(ALTERNATES_COLUMN, table[ALTERNATES_COLUMN])
    return rows


def _resolve(names: pa.Array, root: str, files: Files) -> pa.Array:
    """Resolve the files that another output's rows name. Files that do not belong to that output become null."""
    known = {name: picture_file(name, root, files) for name in names.unique().drop_null().to_pylist()}
    return pa.array([None if name is None else known[name] for name in names.to_pylist()], pa.string())


def picture_file(name: str, root: str, files: Files) -> str | None:
    """Absolute path or URL of a file that a row of the output at `root` names: a tar of that output, or an input of its
    plan.

    None for any other name, because a Parquet file must not be able to refer to a secret file or a URL.
    """
    if _OWN_TAR.fullmatch(name):
        return join(root, name)
    planned = _planned_sources(root, files)
    if name in planned or f"{name.rpartition('/')[0]}/" in planned:
        return name
    origin, _, tar = name.rpartition("/images/")  # a tar of the output from which this output was embedded
    return name if _OWN_TAR.fullmatch(f"images/{tar}") and f"{origin}/pairs/" in planned else None


@lru_cache(maxsize=8)
def _planned_sources(root: str, files: Files, generations: int = 8) -> frozenset[str]:
    """The files and folders that an output was planned from. If any of these are outputs too, includes the files and
    folders that they were planned from."""
    plan = load(Store(root, files.s3)) if generations else None
    found = {file.source for file in plan.inputs} if plan else set()
    for origin in {name.rpartition("/pairs/")[0] for name in found if "/pairs/" in name}:
        found |= {f"{origin}/pairs/", *_planned_sources(origin, files, generations - 1)}
    return frozenset(found)


def _bytes_of(column: pa.ChunkedArray) -> pa.Array:
    """The pictures as large_binary, from a column of bytes or of Hugging Face's structs of `bytes` and `path`."""
    is_struct = pa.types.is_struct(column.type)
    return raw_bytes(pc.struct_field(column, "bytes") if is_struct else column)  # null if the struct is null
