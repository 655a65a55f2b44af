"""Converts column types to features of Hugging Face `datasets`: JSON in a Parquet file's metadata, YAML in a README."""

from typing import TypeAlias

import pyarrow as pa

from pairmill.pipeline.dataset.webdataset_tar import has_map

Feature: TypeAlias = "dict[str, str | Feature]"

_NAMES = {"double": "float64", "float": "float32", "halffloat": "float16", "date32[day]": "date32"}
"""Arrow's name for a type -> its name in `datasets`, where they differ."""


def features(rows: pa.Schema) -> Feature:
    """The features of a file with the column `image` and these columns."""
    image: Feature = {"image": {"_type": "Image"}}
    return image | {field.name: _feature(field.type) for field in rows}


def expressible(rows: pa.Table) -> pa.Table:
    """The same values in types that `datasets` can express.

    Dictionaries are decoded, maps become lists of key and value, decimals of 32 or 64 bits get 128, UUIDs become bytes,
    and JSON becomes text.
    """
    for index, field in enumerate(rows.schema):
        if (kind := _expressible(field.type)) != field.type:
            rows = rows.set_column(index, field.name, rows[field.name].cast(kind))
    return rows


def yaml_features(rows: pa.Schema) -> list[dict[str, object]]:
    """The features of JSON objects with these columns, in the form of `dataset_info` in a README."""
    return [{"name": field.name, **_yaml_feature(field.type)} for field in rows]


def _feature(kind: pa.DataType) -> Feature:
    if pa.types.is_large_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "LargeList"}
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": _NAMES.get(str(kind), str(kind)), "_type": "Value"}


def _expressible(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _expressible(kind.value_type)
    if pa.types.is_map(kind):
        pair = [pa.field("key", _expressible(kind.key_type)), pa.field("value", _expressible(kind.item_type))]
        return pa.list_(pa.struct(pair))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_expressible(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_expressible(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_expressible(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_expressible(kind.value_type)))
    if pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    if isinstance(kind, pa.Bool8Type):
        return pa.bool_()
    return _expressible(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _yaml_feature(kind: pa.DataType) -> dict[str, object]:
    """The type of a value after conversion to JSON (`to_json` in webdataset_tar.py)."""
    if pa.types.is_dictionary(kind):
        return _yaml_feature(kind.value_type)
    if has_map(kind):
        return {"dtype": "string"}
    if isinstance(kind, pa.FixedShapeTensorType):
        return _yaml_feature(kind.storage_type)
    if pa.types.is_struct(kind):
        return {"struct": yaml_features(pa.schema(list(kind)))}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _yaml_feature(kind.value_type)
        return {"list": inner["dtype"] if set(inner) == {"dtype"} else inner}
    if pa.types.is_null(kind):
        return {"dtype": "null"}
    if pa.types.is_boolean(kind) or isinstance(kind, pa.Bool8Type):
        return {"dtype": "bool"}
    if pa.types.is_integer(kind):
        return {"dtype": "uint64" if pa.types.is_uint64(kind) else "int64"}
    return {"dtype": "float64" if pa.types.is_floating(kind) else "string"}
