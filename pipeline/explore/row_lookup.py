"""Finds single rows of a snapshot by index, position or uid, and reads their values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.common.arrow import python_values
from pairmill.pipeline.explore.columns import ColumnCache
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.reader.thumbnails import RowRef
from pairmill.pipeline.select.keys import key_halves

CARD_COLUMNS = ("uid", "status", "kept", "caption_clean")


@dataclass(frozen=True)
class Row:
    """One row, with some of its columns."""

    ref: RowRef
    shard: int
    values: Mapping[str, Any]

    def __getitem__(self, column: str) -> Any:
        return self.values[column]


class RowLookup:
    """The rows of a snapshot, counted from 0 over all its shards. Thread-safe."""

    def __init__(self, snapshot: Snapshot, cache: ColumnCache) -> None:
        self._snapshot, self._cache = snapshot, cache

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """The index of the first row of each shard."""
        sizes = [shard.num_rows for shard in self._snapshot.chunk.shards]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def position(self, shard: int) -> int | None:
        """The position of a shard in the snapshot; None if the snapshot does not contain it."""
        return self._positions.get(shard)

    @cached_property
    def _positions(self) -> Mapping[int, int]:
        return {shard.shard: position for position, shard in enumerate(self._snapshot.chunk.shards)}

    def ref(self, row: int) -> RowRef:
        """The position of a row: its shard, and its index in the shard."""
        position = int(np.searchsorted(self._starts, row, side="right")) - 1
        return RowRef(position, row - int(self._starts[position]))

    def rows(self, indices: Sequence[int] | npt.NDArray[np.int64], columns: Sequence[str] = ()) -> list[Row]:
        """The rows at these indices, with the columns of a card and `columns`."""
        names = list(dict.fromkeys([*CARD_COLUMNS, *columns]))
        table = self._cache.table(names)
        found = []
        for index in map(int, indices):
            ref = self.ref(index)
            values = {name: table[name][index].as_py() for name in names}  # `take` would copy whole columns
            found.append(Row(ref, self._snapshot.chunk.shards[ref.position].shard, values))
        return found

    def whole_row(self, ref: RowRef) -> Row:
        """A row with all its columns except embeddings."""
        shard = self._snapshot.chunk.shards[ref.position]
        names = [
            field.name
            for field in self._snapshot.schema
            if not field.name.startswith(("image_embedding_", "text_embedding_"))
        ]
        table = self._snapshot.read(shard, names).slice(ref.row, 1)
        return Row(ref, shard.shard, {name: python_values(table[name])[0] for name in names})

    def find(self, uid: str) -> int | None:
        """The index of the first row with this uid; None if there is none."""
        if len(uid) != 32 or not set(uid) <= set("0123456789abcdef"):
            return None
        same = np.flatnonzero(self.uid_halves() == np.uint64(int(uid[:16], 16)))
        for row in same.tolist():
            if self._cache.table(["uid"])["uid"][row].as_py() == uid:
                return int(row)
        return None

    def uid_halves(self) -> npt.NDArray[np.uint64]:
        """The first half of every uid [rows]."""
        compute = lambda: pa.array(key_halves(self._cache.table(["uid"])["uid"], "uid")[0])  # noqa: E731
        return self._cache.derived("uid", compute).to_numpy()  # type: ignore[no-any-return]
