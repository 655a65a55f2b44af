"""Converts text columns of any Arrow type to arrays that later steps and all readers can use.

A shard's string column may exceed the 2 GiB limit of an Arrow `string` array, and a Parquet string column may contain
bytes that are not UTF-8. So url, caption and uid are read as `large_binary`; carried columns keep their type, but lose
what cannot be decoded.
"""

from typing import Any

import pyarrow as pa

from pairmill.pipeline.source.files import decode_lossy
from pairmill.pipeline.source.list_views import as_lists
from pairmill.pipeline.source.nested_arrays import with_children

MAX_DECIMAL_DIGITS = 38
"""DuckDB, Spark and Polars cannot read decimal columns with more digits."""


def raw_bytes(column: pa.ChunkedArray) -> pa.Array:
    """A text column of any type as one `large_binary` array, byte for byte."""
    return column.cast(pa.large_binary()).combine_chunks()


def raw_byte_lists(column: pa.ChunkedArray) -> pa.Array:
    """A column of text lists as one `large_list<large_binary>` array, byte for byte."""
    kind = pa.large_list(pa.large_binary())
    return pa.chunked_array([as_lists(chunk).cast(kind) for chunk in column.chunks], kind).combine_chunks()


def readable(column: pa.Array) -> pa.Array:
    """The same values converted to their `plain_type`. Invalid UTF-8, on which readers would fail, becomes U+FFFD at
    any depth.
    """
    column = as_lists(column).cast(plain_type(column.type))
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:  # because of text, or of other values, which stay as they are, such as the time 24:00
        return _decoded(column)
    return column


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """The type with everything replaced that readers of the output cannot open, at any depth.

    Most Arrow kernels (`take`, `filter`) do not support views. `datasets` cannot express dictionaries (Parquet encodes
    repeated values as dictionaries anyway) and extension types, such as UUID and JSON, which become their storage type.
    Polars cannot read decimals of more than 38 digits, which become text.
    """
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    if data_type in plain:
        return plain[data_type]
    if pa.types.is_dictionary(data_type):
        return plain_type(data_type.value_type)
    if isinstance(data_type, pa.BaseExtensionType):
        return plain_type(data_type.storage_type)
    if pa.types.is_decimal256(data_type):
        fits = data_type.precision <= MAX_DECIMAL_DIGITS
        return pa.decimal128(data_type.precision, data_type.scale) if fits else pa.string()
    if pa.types.is_list_view(data_type):
        return pa.list_(plain_type(data_type.value_type))
    if pa.types.is_large_list_view(data_type):
        return pa.large_list(plain_type(data_type.value_type))
    return _map_children(data_type, plain_type)


def _decoded(values: pa.Array) -> pa.Array:
    """Values of a plain type, with U+FFFD for invalid UTF-8. All values but text stay as they are."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return decode_lossy(values.cast(pa.large_binary())).cast(kind)
    return with_children(values, _decoded).cast(kind) if pa.types.is_nested(kind) else values


def _map_children(data_type: pa.DataType, change: Any) -> pa.DataType:
    """A nested type with `change` applied to its child types, and without required fields, which other files may lack;
    any other type unchanged."""
    if pa.types.is_struct(data_type):
        return pa.struct([field.with_type(change(field.type)).with_nullable(True) for field in data_type])
    if pa.types.is_map(data_type):
        return pa.map_(change(data_type.key_type), change(data_type.item_type))
    if pa.types.is_fixed_size_list(data_type):
        return pa.list_(change(data_type.value_type), data_type.list_size)
    if pa.types.is_large_list(data_type):
        return pa.large_list(change(data_type.value_type))
    if pa.types.is_list(data_type):
        return pa.list_(change(data_type.value_type))
    return data_type
