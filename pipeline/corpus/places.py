"""Where the pictures of a shard are, as columns beside its rows; of Parquet with pictures, the pictures themselves."""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inputs.texts import raw_bytes
from pipeline.storage import join
from schemas.pairs import IMAGE_COLUMN, STORED


def with_places(rows: pa.Table, table: pa.Table, pictures: str, uri: str) -> pa.Table:
    """`rows` (in_flight_schema) with the columns of STORED; `table` has the input's columns, row for row.

    `pictures`: as in SourceFacts. Pictures within Parquet have the file for a place and no offset: their shard and row
    in the plan say which they are.
    """
    if pictures in ("index", "pairs"):
        places = [table[name].combine_chunks().cast(STORED.field(name).type) for name in STORED.names]
        if pictures == "pairs":
            places[0] = _absolute(places[0], uri.rpartition("/pairs/")[0])
    else:
        places = [pa.nulls(rows.num_rows, field.type) for field in STORED]
    if pictures not in ("index", "pairs", "none"):
        image = _bytes_of(table[pictures])
        rows = rows.set_column(rows.schema.get_field_index(IMAGE_COLUMN.name), IMAGE_COLUMN, image)
        places[0] = pc.if_else(image.is_valid(), uri, pa.scalar(None, pa.string()))
        places[2] = pc.binary_length(image).cast(pa.int64())
    for field, column in zip(STORED, places, strict=True):
        rows = rows.append_column(field, column)
    return rows


def _absolute(names: pa.Array, root: str) -> pa.Array:
    """Tars of another output, wherever it lies; what that output only refers to is absolute already."""
    distinct = {
        name: join(root, name) if name.startswith("images/") else name
        for name in names.unique().drop_null().to_pylist()
    }
    return pa.array([None if name is None else distinct[name] for name in names.to_pylist()], pa.string())


def _bytes_of(column: pa.ChunkedArray) -> pa.Array:
    """large_binary from bytes, or from Hugging Face's structs of `bytes` and `path`."""
    is_struct = pa.types.is_struct(column.type)
    return raw_bytes(pc.struct_field(column, "bytes") if is_struct else column)  # null where the struct is
