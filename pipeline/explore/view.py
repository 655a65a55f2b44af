"""Provides the dataset to the pages: its columns, the rows that a query selects, and their order.

A count equals the number of rows that `select` would write: `select` starts from the kept rows (or from all pairs),
keeps one row per uid, and then evaluates the expression, in which NULL counts as false. `View.mask` does the same with
columns in memory, and uses the same `Expression` for the evaluation.
"""

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.dataset.subset import read_subset
from pairmill.pipeline.explore.columns import ColumnCache
from pairmill.pipeline.explore.memory import Memory
from pairmill.pipeline.explore.order import first_sorted, numbers, sort_keys
from pairmill.pipeline.explore.query import Query, QueryError, RowsOf, clauses, expression
from pairmill.pipeline.explore.row_lookup import CARD_COLUMNS, RowLookup
from pairmill.pipeline.explore.sample import Sampled
from pairmill.pipeline.explore.start import Mask, first_of_each, of_subset
from pairmill.pipeline.explore.summary import Column, Kind, describe, kind_of, unread
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.filters import to_mask
from pairmill.pipeline.select.keys import key_halves
from pairmill.schemas.pairs import KEPT_STATUS

Rows = npt.NDArray[np.int64]
"""Indices of rows of the view."""

_SAMPLE_ROWS = 4_096
_BLOCK_ROWS = 65_536
_FIRST_ROWS = 6_000
"""This many rows can be shown without sorting all of them."""


class View:
    """The pairs of a snapshot. Thread-safe."""

    def __init__(self, sampled: Sampled, cache: ColumnCache, on_step: OnStep = ignore_step) -> None:
        """Reads the columns that the first page needs, unless they are already cached."""
        self.sampled = sampled
        self.snapshot: Snapshot = sampled.snapshot
        self.cache = cache
        self.num_rows = self.snapshot.chunk.num_rows
        self.lookup = RowLookup(self.snapshot, cache)
        self.memory = Memory()
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="expressions")
        self._kinds = self._column_kinds()
        narrow = [name for name, kind in self._kinds.items() if kind != "text"]
        self.cache.table([*narrow, *CARD_COLUMNS], on_step)

    def _column_kinds(self) -> dict[str, Kind]:
        """The kind of filter for each column that gets one, from the types and from the values of one shard."""
        schema, largest = self.snapshot.schema, max(self.snapshot.chunk.shards, key=lambda shard: shard.num_rows)
        texts = [field.name for field in schema if _is_text(field.type)]
        sample = self.snapshot.read(largest, texts).slice(0, _SAMPLE_ROWS)
        none = pa.chunked_array([pa.array([], pa.string())])
        found = {field.name: kind_of(field, sample[field.name] if field.name in texts else none) for field in schema}
        found["uid"] = "text"
        return {name: kind for name, kind in found.items() if kind}

    @cached_property
    def columns(self) -> Mapping[str, Column]:
        """The filter for each column, in the order of the schema."""
        narrow = [name for name, kind in self._kinds.items() if kind != "text"]
        table = self.cache.table(narrow)
        described = self._pool.map(lambda name: describe(name, self._kinds[name], table[name]), narrow)
        made = dict(zip(narrow, described, strict=True))
        return {name: made[name] if name in made else unread(name, kind) for name, kind in self._kinds.items()}

    @property
    def scores(self) -> list[str]:
        """The similarity columns that have values."""
        return [name for name, each in self.columns.items() if name.startswith("similarity") and each.has_values]

    @property
    def added_scores(self) -> frozenset[str]:
        """The columns of added scores."""
        return frozenset(column for each in self.snapshot.added.scores for column in each.columns)

    @property
    def aliases(self) -> list[str]:
        """The aliases of the models with picture embeddings."""
        names = self.snapshot.schema.names
        return [name.removeprefix("image_embedding_") for name in names if name.startswith("image_embedding_")]

    def warm_up(self, ended: threading.Event) -> None:
        """Read the text columns until `ended` is set, so that the first filter on them is fast too."""
        for name, kind in self._kinds.items():
            if kind == "text" and not ended.is_set():
                self.cache.table([name])

    def close(self) -> None:
        """Stop threads."""
        self._pool.shutdown()

    def clauses(self, query: Query) -> list[str]:
        """The expressions of a query, which must all be true. Raises QueryError."""
        return clauses(query, self.columns)

    def expression(self, query: Query) -> str:
        """A query as one expression; empty if it selects all rows. Raises QueryError, and ExpressionError if one of
        several clauses is not an expression by itself: if joined, `a) or (b` would change the meaning of the others."""
        parts = self.clauses(query)
        for part in parts if len(parts) > 1 else ():
            Expression(part).check(self.snapshot.schema, "boolean")
        return expression(parts)

    def count(self, query: Query) -> int:
        """The number of rows that the query selects. Raises QueryError, ExpressionError and SubsetError."""
        return int(np.count_nonzero(self.mask(query)))

    def mask(self, query: Query) -> Mask:
        """The rows that the query selects. Raises QueryError, ExpressionError and SubsetError."""
        parts = self.clauses(query)
        mask = self.start(query.rows, query.subset)
        if parts:
            Expression(self.expression(query)).check(self.snapshot.schema, "boolean")
        for part in parts:  # `a and b` is true for exactly the rows for which both are true
            mask = mask & self._clause(part)
        return mask

    def start(self, rows: RowsOf, subset: str | None) -> Mask:
        """The rows before any filter: those of the subset, if there is one. Otherwise, one row per uid, from the kept
        rows or from all pairs. Raises SubsetError if the subset is outdated."""
        if subset is not None:
            return self.memory.remember(
                ("subset", subset, self._attempt(subset)), lambda: of_subset(self.snapshot, subset)
            )
        return self.memory.remember(
            ("start", rows), lambda: _booleans(self.cache.derived(f"start {rows}", lambda: self._unique(rows)))
        )

    def _attempt(self, subset: str) -> str:
        return read_subset(self.snapshot.store, subset).attempt

    def _unique(self, rows: RowsOf) -> pa.Array:
        """The first row with each uid: the same rows that `dedup: {by: uid}` keeps."""
        table = self.cache.table(["uid", "status"])
        high, low = key_halves(table["uid"], "uid")
        among = np.ones(self.num_rows, np.bool_)
        if rows == "kept":
            among = to_mask(pc.equal(table["status"], KEPT_STATUS))
        return pa.array(first_of_each(high, low, among))

    def _clause(self, text: str) -> Mask:
        def evaluate() -> Mask:
            each = Expression(text)
            each.check(self.snapshot.schema, "boolean")
            return self._evaluated(each, self.cache.table(sorted(each.columns)))

        return self.memory.remember(("clause", text), evaluate)

    def _evaluated(self, each: Expression, table: pa.Table) -> Mask:
        """The rows for which an expression is true, evaluated on all cores."""
        parts = [table.slice(start, _BLOCK_ROWS) for start in range(0, table.num_rows, _BLOCK_ROWS)]
        return np.concatenate(list(self._pool.map(lambda part: to_mask(each.evaluate(part)), parts)))

    def order(self, query: Query, limit: int | None = None) -> Rows:
        """The first `limit` rows of a query in its order; None: all rows. Rows without a value come last; ties are in
        dataset order."""
        column = self.sort_column(query)
        size = self.num_rows if limit is None or limit > _FIRST_ROWS else _FIRST_ROWS
        key = ("order", size, query.rows, query.subset, query.subset and self._attempt(query.subset),
               tuple(self.clauses(query)), column, query.order, query.around)  # fmt: skip
        return self.memory.remember(key, lambda: self._sorted(query, column, size))[:limit]

    def random(self, mask: Mask, limit: int) -> Rows:
        """At most `limit` rows of a mask, always the same ones: those with the lowest uids."""
        rows = np.flatnonzero(mask)
        return rows[first_sorted(self.lookup.uid_halves()[rows], limit)][:limit]

    def sort_column(self, query: Query) -> str | None:
        """The column that a query sorts by; None for the order of uids. Raises QueryError."""
        if query.order == "random":
            return None
        name = query.sort or next(iter(self.scores), "")
        if not name:
            return None
        if name not in self.columns or self.columns[name].kind != "number":
            raise QueryError(f"sort: {name!r} is not a numeric column")
        return name

    def _sorted(self, query: Query, column: str | None, size: int) -> Rows:
        rows = np.flatnonzero(self.mask(query))
        if column is None:
            keys = self.lookup.uid_halves()[rows]
        elif query.order == "around":
            keys = self._of_column("numbers", column)[rows]
            keys = np.abs(keys - (float(query.around) if query.around else self._middle(keys)))
        else:
            keys = self._of_column("sort keys", column)[rows]
            keys = -keys if query.order == "best" else keys
        return rows[first_sorted(keys, size)]

    def _of_column(self, what: Literal["numbers", "sort keys"], column: str) -> npt.NDArray[Any]:
        """The `numbers` or the `sort_keys` of a column, for all rows."""
        values, function = self.cache.table([column])[column], numbers if what == "numbers" else sort_keys
        return self.memory.remember((what, column), lambda: function(values))

    def _middle(self, keys: npt.NDArray[Any]) -> float:
        finite = keys[np.isfinite(keys)]
        return float(np.median(finite)) if len(finite) else 0.0


def _booleans(column: pa.ChunkedArray) -> Mask:
    values: Mask = column.to_numpy(zero_copy_only=False)
    return values


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
