"""Converts list views to lists, at any depth, as soon as they are read.

Arrow's own cast ignores the sizes of list views, so it returns other rows' values and reads beyond the buffers
(https://github.com/apache/arrow/issues/50994). Besides, rows taken from list views keep the items of all other rows in
memory.
"""

import pyarrow as pa

from pairmill.pipeline.source.nested_arrays import with_children


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
    return with_children(values, as_lists)


def _has_views(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_views(kind.storage_type)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return True
    return any(_has_views(kind.field(index).type) for index in range(kind.num_fields))
