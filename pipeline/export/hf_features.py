"""Column types as Hugging Face `datasets` names them and stores them in the metadata of a Parquet file."""

from typing import TypeAlias

import pyarrow as pa

Feature: TypeAlias = "dict[str, str | Feature]"

_NAMES = {"double": "float64", "float": "float32", "halffloat": "float16", "date32[day]": "date32"}
"""Types that have another name in Arrow."""


def features(rows: pa.Schema) -> Feature:
    """The features of a file with the column `image` and these columns."""
    image: Feature = {"image": {"_type": "Image"}}
    return image | {field.name: _feature(field.type) for field in rows}


def has_feature(kind: pa.DataType) -> bool:
    """Whether `datasets` can express the type."""
    return not (pa.types.is_map(kind) or pa.types.is_dictionary(kind) or pa.types.is_union(kind))


def _feature(kind: pa.DataType) -> Feature:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": _NAMES.get(str(kind), str(kind)), "_type": "Value"}
