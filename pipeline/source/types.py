"""Finds a common type for a column that several files have, if some type can store all their values.

No value changes silently. The common type of integers is a wider integer, or a float whose mantissa is wide enough.
64-bit integers become doubles (as pandas writes integers with missing values), and uint64 becomes int64, only if the
values are small enough, which `values_fit` checks. Times in different units get the finer unit, again only if the
values fit.
"""

from enum import Enum

import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.source.files import INT96_UNIT
from pairmill.pipeline.source.row_group_cost import bounded_batches
from pairmill.pipeline.source.texts import MAX_DECIMAL_DIGITS, plain_type

LOST_NANOSECONDS = (
    "has nanoseconds in the old type INT96, which cannot be told apart from other dates; write it as Parquet's "
    "TIMESTAMP"
)
_MANTISSA_BITS = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}
_UNITS = ("s", "ms", "us", "ns")


class Fit(Enum):
    """Whether one type can store all values of another."""

    NEVER = 0
    DEPENDS = 1
    """It depends on the values."""
    ALWAYS = 2


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type that can store the values of both types, at least if they are small enough; None if no type can."""
    if one.equals(other):
        return one
    one, other = _plain(one), _plain(other)
    try:
        schemas = [pa.schema([("", one)]), pa.schema([("", other)])]
        found = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
    return None if Fit.NEVER in (fit(found, one), fit(found, other)) else found


def fit(target: pa.DataType, source: pa.DataType) -> Fit:
    """Whether `target` can store the values of `source` exactly."""
    target, source = _plain(target), _plain(source)
    if target.equals(source) or pa.types.is_null(source):
        return Fit.ALWAYS
    if pa.types.is_nested(target) and pa.types.is_nested(source):
        return _fit_nested(target, source)
    for fits in (_fit_number, _fit_time, _fit_text):
        if (found := fits(target, source)) is not None:
            return found
    return Fit.NEVER


def values_fit(uri: str, files: Files, column: str, target: pa.DataType) -> bool:
    """Whether every value of a Parquet file's column fits into `target`. Reads statistics, or else the column."""
    with (
        files.open(uri) as file,
        pq.ParquetFile(file, coerce_int96_timestamp_unit=INT96_UNIT, pre_buffer=False) as parquet,
    ):
        kind = plain_type(parquet.schema_arrow.field(column).type)
        leaf = first_leaf(parquet, column)
        to_read = []
        for group in range(parquet.num_row_groups):
            bounds = None
            if pa.types.is_integer(kind):
                bounds = parquet.metadata.row_group(group).column(leaf).statistics
            if bounds is None or not bounds.has_min_max:
                to_read.append(group)
            elif not _casts(pa.array([bounds.min, bounds.max], kind), target):
                return False
        return all(_casts(batch.column(0), target) for batch in bounded_batches(uri, file, parquet, [column], to_read))


def int96_columns(parquet: pq.ParquetFile) -> list[str]:
    """Names of the top-level columns that contain INT96, Parquet's old type for timestamps."""
    names = parquet.schema_arrow.names
    starts = [*(first_leaf(parquet, name) for name in names), len(parquet.schema)]
    leaves = [parquet.schema.column(index).physical_type for index in range(len(parquet.schema))]
    spans = zip(names, starts, starts[1:], strict=False)
    return sorted(name for name, start, end in spans if "INT96" in leaves[start:end])


def first_leaf(parquet: pq.ParquetFile, column: str) -> int:
    """The index of the first leaf of a top-level column among all leaves of the file.

    Leaves are counted rather than found by path: `a.b` may be a column of that name, or the field `b` of a struct `a`.
    """
    schema = parquet.schema_arrow
    return sum(map(_num_leaves, schema.types[: schema.names.index(column)]))


def lost_nanoseconds(batch: pa.RecordBatch, finer: pa.RecordBatch) -> str | None:
    """The first column of `finer` whose times, read in nanoseconds, have more digits than in `batch`; None if there is
    no such column.

    The cast wraps around as Arrow's reader does, so it gives the same nanoseconds unless digits were cut off.
    """
    for name in finer.schema.names:
        if not batch.column(name).cast(finer.schema.field(name).type, safe=False).equals(finer.column(name)):
            return str(name)
    return None


def exact_times(batch: pa.RecordBatch, finer: pa.RecordBatch) -> pa.RecordBatch:
    """The rows, with the columns of `finer`, where all their times fit into nanoseconds. Raises ArrowInvalid for times
    that fit into neither unit."""
    for name in finer.schema.names:
        index = batch.schema.get_field_index(name)
        if _casts(batch.column(index), finer.schema.field(name).type):
            batch = batch.set_column(index, finer.schema.field(name), finer.column(name))
        elif lost_nanoseconds(batch, finer.select([name])):
            raise pa.ArrowInvalid(f"column {name!r} {LOST_NANOSECONDS}")
    return batch


def _num_leaves(kind: pa.DataType) -> int:
    """The number of leaf columns in a Parquet file for a top-level column of this type."""
    if isinstance(kind, pa.BaseExtensionType):
        return _num_leaves(kind.storage_type)
    return sum(_num_leaves(kind.field(index).type) for index in range(kind.num_fields)) or 1


def _casts(values: pa.Array, target: pa.DataType) -> bool:
    try:
        values.cast(target)
    except pa.ArrowInvalid:
        return False
    return True


def _plain(kind: pa.DataType) -> pa.DataType:
    """The value type of a dictionary type, and the storage type of an extension type, as in the plans of older
    versions; any other type unchanged."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _fit_number(target: pa.DataType, source: pa.DataType) -> Fit | None:
    if pa.types.is_integer(source) and pa.types.is_integer(target):
        (low, high), (lowest, highest) = _range(source), _range(target)
        return Fit.ALWAYS if lowest <= low and high <= highest else Fit.DEPENDS
    if pa.types.is_integer(source) and pa.types.is_floating(target):
        limit = 1 << _MANTISSA_BITS[target]
        low, high = _range(source)
        return Fit.ALWAYS if -limit <= low and high <= limit else Fit.DEPENDS
    if pa.types.is_floating(source) and pa.types.is_floating(target):
        return Fit.ALWAYS if _MANTISSA_BITS[source] <= _MANTISSA_BITS[target] else Fit.NEVER
    if pa.types.is_decimal(target) and target.precision <= MAX_DECIMAL_DIGITS:
        whole = target.precision - target.scale
        if pa.types.is_integer(source):
            return Fit.ALWAYS if 10**whole > max(map(abs, _range(source))) else Fit.DEPENDS
        if pa.types.is_decimal(source):
            holds = target.scale >= source.scale and whole >= source.precision - source.scale
            return Fit.ALWAYS if holds else Fit.NEVER
    return None


def _fit_time(target: pa.DataType, source: pa.DataType) -> Fit | None:
    """Whether times fit: only into times of the same kind and time zone, in the same or a finer unit. Times of day
    always fit into a finer unit; timestamps and durations may overflow."""
    if pa.types.is_timestamp(target) and pa.types.is_timestamp(source) and target.tz != source.tz:
        return Fit.NEVER
    for is_kind in (pa.types.is_timestamp, pa.types.is_duration, pa.types.is_time):
        if is_kind(target) and is_kind(source):
            if _UNITS.index(target.unit) < _UNITS.index(source.unit):
                return Fit.NEVER
            return Fit.ALWAYS if is_kind is pa.types.is_time else Fit.DEPENDS
    return Fit.ALWAYS if pa.types.is_date64(target) and pa.types.is_date32(source) else None


def _fit_text(target: pa.DataType, source: pa.DataType) -> Fit | None:
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    is_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    if any(is_kind(source) for is_kind in (*is_text, *is_bytes)) and not pa.types.is_fixed_size_binary(target):
        wanted = is_text if any(is_kind(source) for is_kind in is_text) else is_bytes
        return Fit.ALWAYS if any(is_kind(target) for is_kind in {*wanted, *is_bytes}) else None
    return None


def _fit_nested(target: pa.DataType, source: pa.DataType) -> Fit:
    """Compare lists by their items and structs by their fields; the target may have extra fields."""
    if pa.types.is_struct(target) and pa.types.is_struct(source):
        names = {field.name for field in target}
        fits = [fit(target.field(each.name).type, each.type) if each.name in names else Fit.NEVER for each in source]
    elif pa.types.is_map(target) and pa.types.is_map(source):
        fits = [fit(target.key_type, source.key_type), fit(target.item_type, source.item_type)]
    elif all(hasattr(kind, "value_type") for kind in (target, source)):
        if pa.types.is_fixed_size_list(target):
            return Fit.NEVER  # a different size
        fits = [fit(target.value_type, source.value_type)]
    else:
        return Fit.NEVER
    return min(fits, key=lambda each: each.value, default=Fit.ALWAYS)


def _range(kind: pa.DataType) -> tuple[int, int]:
    if pa.types.is_unsigned_integer(kind):
        return 0, (1 << kind.bit_width) - 1
    return -(1 << kind.bit_width - 1), (1 << kind.bit_width - 1) - 1
