"""Rebuilds nested Arrow arrays with other child arrays, value by value as before."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def with_children(values: pa.Array, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """The same nested values after `change` was applied to each child array. List views become lists."""
    kind = values.type
    nulls = values.is_null()
    if pa.types.is_struct(kind):
        columns = [change(values.field(index)) for index in range(kind.num_fields)]
        fields = [field.with_type(column.type) for field, column in zip(kind, columns, strict=True)]
        return pa.StructArray.from_arrays(columns, fields=fields, mask=nulls)
    if pa.types.is_fixed_size_list(kind):
        items = values.values.slice(values.offset * kind.list_size, len(values) * kind.list_size)
        return pa.FixedSizeListArray.from_arrays(change(items), kind.list_size, mask=nulls)
    if pa.types.is_map(kind):
        offsets = values.offsets.to_numpy()
        first, length = offsets[0], offsets[-1] - offsets[0]
        keys, items = (change(each.slice(first, length)) for each in (values.keys, values.items))
        return pa.MapArray.from_arrays(pa.array(offsets - first), keys, items, mask=nulls)
    lengths = pc.list_value_length(values).fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = change(pc.list_flatten(values))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), items, mask=nulls)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, mask=nulls)
