"""Defines the Arrow schemas of pairs: in flight between stages, and in the two Parquet files of a shard.

In flight, a shard is one table, and the number and order of its rows never change. A rejected row stays in the table
with its Status set. Only the commit stage splits the table into `pairs/` and `rejects/`.
"""

from typing import NamedTuple

import pyarrow as pa

from pairmill.schemas.status import Status

TEXT = pa.string()

IDENTITY = pa.schema(
    [
        pa.field("row_id", TEXT, nullable=False),  # SHARD:ROW, or SHARD:ROW:CAPTION for a list of captions
        pa.field("uid", TEXT, nullable=False),  # 32 hex characters; computed if the row's own uid is invalid
        pa.field("url", TEXT),
        pa.field("caption", TEXT),  # as in the input
        pa.field("caption_clean", TEXT),  # entities decoded, whitespace collapsed, NFC; rules, models and .txt use it
        pa.field("caption_index", pa.int32()),  # index in the row's list of captions; 0 if it is not a list
    ]
)

VERDICT = pa.schema(
    [
        pa.field("status", TEXT, nullable=False),
        pa.field("status_detail", TEXT),  # the reason in detail; null if there is none
    ]
)

FETCHED = pa.schema(
    [
        pa.field("http_status", pa.int32()),
        pa.field("final_url", TEXT),  # null if there was no response
        pa.field("content_type", TEXT),
        pa.field("original_bytes", pa.int64()),
        pa.field("fetch_attempts", pa.int32()),
        pa.field("fetch_s", pa.float32()),
        pa.field("fetched_at", pa.timestamp("us", tz="UTC")),
        pa.field("sha256", TEXT),  # hex digest of the original bytes
        pa.field("md5", TEXT),
        pa.field("original_format", TEXT),  # Pillow's name: JPEG, PNG, ...
        pa.field("original_width", pa.int32()),  # size in pixels, after the EXIF rotation
        pa.field("original_height", pa.int32()),
    ]
)

PICTURE = pa.schema(
    [
        pa.field("phash", TEXT),  # 64-bit perceptual hash of the picture, 16 hex characters
        pa.field("one_color", pa.bool_()),
        pa.field("width", pa.int32()),  # size of the stored picture, in pixels
        pa.field("height", pa.int32()),
    ]
)

STORED = pa.schema(
    [
        pa.field("image_tar", TEXT),  # relative to the output folder; null if the picture is not stored
        pa.field("image_offset", pa.int64()),  # position of the picture's first byte, not of its tar header
        pa.field("image_length", pa.int64()),
    ]
)

CHECKSUM = pa.field("image_crc32", pa.uint32())
"""CRC-32 (ISO 3309, as in zlib and gzip) of the bytes at `image_offset`; null if no picture is stored. Datasets planned
before 0.2 have no such column."""

IMAGE_COLUMN = pa.field("image", pa.large_binary())
"""In flight only: the stored picture, encoded."""

IS_PAIR_COLUMN = pa.field("is_pair", pa.bool_(), nullable=False)
"""In flight only: whether the picture was decoded and no rule before scoring dropped it."""

OWN_COLUMNS = frozenset(
    name.lower()
    for schema in (IDENTITY, VERDICT, FETCHED, PICTURE, STORED)
    for name in [*schema.names, CHECKSUM.name, "kept", "similarity", "image", "is_pair"]
)


def is_own_column(name: str) -> bool:
    """Whether a column of this name, ignoring case, is pairmill's own or may become one with another model."""
    prefixes = ("similarity_", "image_embedding_", "text_embedding_")
    return name.lower() in OWN_COLUMNS or name.lower().startswith(prefixes)


def source_column_name(name: str, taken: set[str]) -> str:
    """Output name of an input column, prefixed with `source_` if it collides with another name, ignoring case.

    `taken`: names already in use, in lower case; the result is not added.
    """
    candidate = f"source_{name}" if is_own_column(name) or name.lower() in taken else name
    while candidate.lower() in taken:
        candidate = f"source_{candidate}"
    return candidate


def embedding_type(dim: int) -> pa.DataType:
    """Type of an embedding column. Vectors can be null but elements cannot, so Arrow reads 1.5 times as fast."""
    return pa.list_(pa.field("element", pa.float16(), nullable=False), dim)


def is_embedding(field: pa.Field) -> bool:
    """Whether an output column is a model's embedding."""
    named = field.name.startswith(("image_embedding_", "text_embedding_"))
    return named and bool(pa.types.is_fixed_size_list(field.type))


class ScoreColumnNames(NamedTuple):
    """Names of the columns of one model."""

    similarity: str
    image_embedding: str
    text_embedding: str


def score_column_names(alias: str) -> ScoreColumnNames:
    """Names of the columns of the model with this alias."""
    return ScoreColumnNames(f"similarity_{alias}", f"image_embedding_{alias}", f"text_embedding_{alias}")


def score_columns(alias: str, dim: int) -> pa.Schema:
    """Columns of one model, whose embeddings have `dim` elements. An embedding is null if its picture or caption is
    missing, and the similarity if either is."""
    types = (pa.float32(), embedding_type(dim), embedding_type(dim))
    return pa.schema(list(zip(score_column_names(alias), types, strict=True)))


def in_flight_schema(extra: pa.Schema) -> pa.Schema:
    """Schema of a shard after the read stage. The fetched and picture columns are still null."""
    return pa.schema([*IDENTITY, *VERDICT, IS_PAIR_COLUMN, *FETCHED, *PICTURE, IMAGE_COLUMN, *extra])


def pairs_schema(extra: pa.Schema, scores: list[pa.Schema], has_checksums: bool = True) -> pa.Schema:
    """Schema of `pairs/*.parquet`. `similarity` repeats that of the first model, and is null without models."""
    kept = pa.field("kept", pa.bool_(), nullable=False)
    similarity = pa.field("similarity", pa.float32())
    per_model = [field for schema in scores for field in schema]
    stored = [*STORED, *([CHECKSUM] if has_checksums else [])]
    return pa.schema([*IDENTITY, *VERDICT, kept, similarity, *FETCHED, *PICTURE, *stored, *per_model, *extra])


def rejects_schema(extra: pa.Schema) -> pa.Schema:
    """Schema of `rejects/*.parquet`: the rows that were not scored, with the reason for each."""
    return pa.schema([*IDENTITY, *VERDICT, *FETCHED, *extra])


KEPT_STATUS = Status.OK.value
