"""Sketches the values of expressions over a whole dataset."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.scan import ShardReader, scan
from pairmill.pipeline.score.value_sketch import Cells, Counts, ValueSketch
from pairmill.pipeline.select.comparisons import Numbers, exact_numbers
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.tasks import Tasks

_SUMMARIES_AT_ONCE = 32
"""Number of shards whose summaries are in memory and merged at a time."""

_Summary = TypeVar("_Summary", ValueSketch, Counts)


def sketch_values(
    snapshot: Snapshot, tasks: Tasks, expressions: Sequence[Expression], ranked: Sequence[bool], over: str
) -> list[ValueSketch]:
    """The sketch of each expression. `ranked`: which sketches are for ranks. The dataset is read again as long as one
    of these has crowded buckets. `over`: as in the score."""

    def of_shards(
        expressions: Sequence[Expression], function: Callable[..., list[_Summary]], *more: object
    ) -> Iterator[list[_Summary]]:
        columns = frozenset({"kept"}).union(*(each.columns for each in expressions))
        return scan(snapshot, columns, tasks, function, (expressions, over, *more))

    sketches = _merged(of_shards(expressions, _sketch), [ValueSketch.merged] * len(expressions))
    while crowded := [
        number for number, sketch in enumerate(sketches) if ranked[number] and sketch.counts.is_crowded.any()
    ]:
        cells = [sketches[number].crowded_cells() for number in crowded]
        counts = of_shards([expressions[number] for number in crowded], _count, cells)
        for number, each in zip(crowded, _merged(counts, [each.merged for each in cells]), strict=True):
            sketches[number] = sketches[number].split(each)
    return sketches


def numbers_of(expression: Expression, rows: pa.Table) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """The values of an expression [rows], and a mask of those that are neither null nor NaN."""
    found = expression.evaluate(rows)
    return exact_numbers(found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found)


def _merged(
    shards: Iterable[list[_Summary]], merge: Sequence[Callable[[Sequence[_Summary]], _Summary]]
) -> list[_Summary]:
    """Merge the summaries of all shards into one per expression. `merge`: the function for each expression."""

    def joined() -> list[_Summary]:
        return [function(parts) for function, *parts in zip(merge, *waiting, strict=True)]

    waiting: list[list[_Summary]] = []
    for shard in shards:
        waiting.append(shard)
        if len(waiting) > _SUMMARIES_AT_ONCE:
            waiting = [joined()]
    return joined()


def _sketch(
    reader: ShardReader, shard: int, generation: int, expressions: Sequence[Expression], over: str
) -> list[ValueSketch]:
    """Sketch each expression over one shard."""
    return [ValueSketch.of(values) for values in _values(reader.read(shard, generation), expressions, over)]


def _count(
    reader: ShardReader,
    shard: int,
    generation: int,
    expressions: Sequence[Expression],
    over: str,
    cells: Sequence[Cells],
) -> list[Counts]:
    """Count the values of each expression in cells, over one shard."""
    found = _values(reader.read(shard, generation), expressions, over)
    return [each.count(values) for each, values in zip(cells, found, strict=True)]


def _values(rows: pa.Table, expressions: Sequence[Expression], over: str) -> Iterator[Numbers]:
    """The values of each expression, without null and NaN."""
    rows = rows.filter(rows["kept"]) if over == "kept" else rows
    for expression in expressions:
        values, is_valid = numbers_of(expression, rows)
        yield values[is_valid]
