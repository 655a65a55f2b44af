"""Prepares Arrow tables for a trainer: reads one table ahead, cuts tables into batches, and converts columns to
tensors."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pairmill.pipeline.common.arrow import fit_float64, python_values
from pairmill.pipeline.feed.config import FeedError


def read_ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables. While the caller uses one table, a thread reads the next."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed-ahead") as reader:
        pending = reader.submit(next, tables, None)
        while (table := pending.result()) is not None:
            pending = reader.submit(next, tables, None)
            yield table


def rebatch(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in the same order, `size` per table; the last table has the remainder."""
    waiting: deque[pa.Table] = deque()
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        if rows < size:
            continue
        whole = pa.concat_tables(waiting)
        full = rows - rows % size
        for start in range(0, full, size):
            yield whole.slice(start, size)
        waiting, rows = deque([whole.slice(full)]), rows - full
    if rows:
        yield pa.concat_tables(waiting)


def values_of(array: pa.Array) -> torch.Tensor | list[Any]:
    """Numbers as a tensor (rows,), embeddings and other vectors of numbers as a tensor (rows, dim), anything else as a
    list.

    Null becomes NaN in a tensor, and None in a list. Integers with a null become floats, or a list if a float64 cannot
    represent all of them.
    """
    is_vectors = pa.types.is_fixed_size_list(array.type)
    numbers = array.flatten() if is_vectors else array  # without the elements of null vectors
    kind, has_nulls = numbers.type, bool(array.null_count or numbers.null_count)
    is_exact = pa.types.is_integer(kind) and (not has_nulls or fit_float64(numbers))
    if not (pa.types.is_floating(kind) or is_exact):
        return python_values(array)
    if has_nulls and pa.types.is_integer(kind):
        numbers = numbers.cast(pa.float64())
    values = numbers.to_numpy(zero_copy_only=False)
    return torch.from_numpy(_vectors(array, values) if is_vectors else values.copy())


def _vectors(array: pa.FixedSizeListArray, elements: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The vectors (rows, dim). `elements`: those of the vectors that are not null."""
    valid = elements.reshape(len(array) - array.null_count, array.type.list_size)
    if not array.null_count:
        return valid.copy()
    vectors = np.full((len(array), array.type.list_size), np.nan, valid.dtype)
    vectors[array.is_valid().to_numpy(zero_copy_only=False)] = valid
    return vectors


def item(values: Any, row: int) -> Any:
    """The value of one row in a column; numbers become Python numbers."""
    value = values[row]
    return value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value


def stack(values: Any) -> Any:
    """A column of a batch: a list of tensors becomes one tensor, anything else stays as it is."""
    if isinstance(values, list) and values and all(isinstance(value, torch.Tensor) for value in values):
        return torch.stack(values)
    return values


def texts_of(column: str, values: Sequence[str | None]) -> list[str]:
    """The captions for a tokenizer. Raises FeedError if one is null or blank, because a trainer must not silently learn
    from empty text (exports refuse such rows too)."""
    texts = [text for text in values if text is not None and text.strip()]
    if missing := len(values) - len(texts):
        raise FeedError(
            f"{missing:,} of {len(values):,} rows have no text in {column!r}: "
            "use a subset that was selected with `where: caption_clean is not None`"
        )
    return texts
