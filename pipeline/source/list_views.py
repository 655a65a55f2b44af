"""Converts list views to lists, at any depth, as soon as they are read.

Arrow's own cast ignores the sizes of list views, so it returns other rows' values and reads beyond the buffers
(https://github.com/apache/arrow/issues/50994). Besides, rows taken from list views keep the items of all other rows in
memory.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def with_lists(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same columns without list views."""
    if not any(map(_has_views, batch.schema.types)):
        return batch
    columns = [as_lists(column) for column in batch.columns]
    fields = [field.with_type(column.type) for field, column in zip(batch.schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, batch.schema.metadata))


def as_lists(values: pa.Array) -> pa.Array:
    """The same values without list views. An extension type that contains any becomes its storage type."""
    kind = values.type
    if not _has_views(kind):
        return values
    if isinstance(values, pa.ExtensionArray):
        return as_lists(values.storage)
    nulls = values.is_null()
    if pa.types.is_struct(kind):
        columns = [as_lists(values.field(index)) for index in range(kind.num_fields)]
        fields = [field.with_type(column.type) for field, column in zip(kind, columns, strict=True)]
        return pa.StructArray.from_arrays(columns, fields=fields, mask=nulls)
    if pa.types.is_fixed_size_list(kind):
        items = values.values.slice(values.offset * kind.list_size, len(values) * kind.list_size)
        return pa.FixedSizeListArray.from_arrays(as_lists(items), kind.list_size, mask=nulls)
    if pa.types.is_map(kind):
        offsets = values.offsets.to_numpy()
        first, length = offsets[0], offsets[-1] - offsets[0]
        keys, items = (as_lists(each.slice(first, length)) for each in (values.keys, values.items))
        return pa.MapArray.from_arrays(pa.array(offsets - first), keys, items, mask=nulls)
    lengths = pc.list_value_length(values).fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = as_lists(pc.list_flatten(values))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), items, mask=nulls)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, mask=nulls)


def _has_views(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_views(kind.storage_type)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return True
    return any(_has_views(kind.field(index).type) for index in range(kind.num_fields))
