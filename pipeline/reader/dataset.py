"""Reads the pairs of an output folder as one table, and each row with its picture, for `pairmill.open`."""

import difflib
from collections import Counter
from collections.abc import Iterator, KeysView, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pairmill.pipeline.common.arrow import python_values, take_rows
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.subset import (
    SubsetError,
    Weights,
    read_subset,
    selected_rows,
    selected_weights,
    shard_numbers,
    subset_names,
)
from pairmill.pipeline.reader.frames import pandas_frame, polars_frame
from pairmill.pipeline.reader.grid import SIDE, Card, Grid, Order, first_rows
from pairmill.pipeline.reader.pictures import Pictures
from pairmill.pipeline.reader.snapshot import DatasetError, Snapshot
from pairmill.pipeline.reader.thumbnails import RowRef, Thumbnail, Thumbnails
from pairmill.pipeline.reader.uid_finder import UidFinder
from pairmill.pipeline.reader.weights import read_weighted, renamed_weight, with_weight
from pairmill.pipeline.source.uid import own_uid
from pairmill.schemas.subset import Subset

if TYPE_CHECKING:
    import pandas
    import polars


@dataclass(frozen=True)
class Row:
    """One pair: `row["caption"]`, `row.picture`. Like a dict, it contains the names of its columns."""

    values: Mapping[str, Any]
    """Column -> Python value; embeddings are float16 arrays (dim,), and other vectors of numbers are arrays unless an
    element is null. Null is None."""
    picture: Image.Image | None
    """RGB, with the EXIF orientation applied; None if no picture is stored or none was requested."""

    def __getitem__(self, column: str) -> Any:
        return self.values[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def keys(self) -> KeysView[str]:
        """The names of the columns, for `dict(row)`."""
        return self.values.keys()


class Dataset:
    """The pairs of a dataset in input order: one row per decoded picture, whether or not the rules kept it (see the
    columns `status` and `kept`). `dataset.subset("clean")` has only the rows of a subset.

    The dataset stays as it was when it was opened: committed shards, each in its newest generation. An unfinished
    dataset has the shards that are done. Data is read only when needed. If a retry has replaced shards in the meantime,
    or the subset has been selected again, methods that read them raise DatasetError; open the dataset again.
    """

    def __init__(self, snapshot: Snapshot, subset: Subset | None = None) -> None:
        self._snapshot = snapshot
        self._subset = subset

    @classmethod
    def of(cls, store: Store) -> "Dataset":
        """Open an output folder. Raises PlanError if the folder is not one, and DatasetError if no shard is
        finished."""
        store.check_access()
        return cls(Snapshot.of(store))

    def __repr__(self) -> str:
        subset = "" if self._subset is None else f", subset={self._subset.name!r}"
        return f"Dataset({self.path!r}{subset})"

    def __len__(self) -> int:
        if self._subset is not None:
            return sum(int(np.bitwise_count(bits).sum()) for bits in self._chosen)
        return self._snapshot.chunk.num_rows

    def __iter__(self) -> Iterator[Row]:
        return self.rows()

    @property
    def path(self) -> str:
        """The output folder, as an absolute path or `s3://` URL."""
        return self._snapshot.store.root

    @property
    def schema(self) -> pa.Schema:
        """All columns, including those of added models, and the `weight` of a subset that has weights. There, the
        dataset's own column `weight`, if it has one, is called `source_weight`."""
        return self._snapshot.schema if self._weights is None else with_weight(self._snapshot.schema)

    @property
    def subsets(self) -> list[str]:
        """The names of the dataset's subsets."""
        return subset_names(self._snapshot.store)

    @cached_property
    def statuses(self) -> dict[str, int]:
        """Status -> number of rows, most frequent first. The whole dataset also counts rows without a picture."""
        counts: Counter[str] = Counter()
        if self._subset is None:
            for manifest in self._snapshot.manifests():
                counts.update(manifest.statuses)
        else:
            for table in self._tables(["status"]):
                counts.update(table["status"].to_pylist())
        return dict(counts.most_common())

    def subset(self, name: str) -> "Dataset":
        """The rows of a subset, with the same methods.

        Raises SubsetError if there is no such subset. Reading it also raises SubsetError if the dataset has changed
        since the subset was made.
        """
        if self._subset is not None:
            raise DatasetError(f"this is the subset {self._subset.name!r}; open {name!r} from the whole dataset")
        subset, snapshot = read_subset(self._snapshot.store, name), self._snapshot
        if snapshot.added.incomplete:  # perhaps only in shards that are newer than the subset
            snapshot = snapshot.of_shards(shard_numbers(snapshot.store, subset))
        return Dataset(snapshot, subset)

    def table(self, columns: str | Sequence[str] | None = None, subset: str | None = None) -> pa.Table:
        """The rows as an Arrow table in memory.

        Args:
            columns: Column names, in the desired order; None for all, including embeddings (float16 fixed-size lists).
                A name that is repeated counts once.
            subset: Name of a subset, as in `dataset.subset(name).table(columns)`.

        Raises:
            DatasetError: There is no such column.
        """
        if subset is not None:
            return self.subset(subset).table(columns)
        names = self._names(columns)
        read = names or ["uid"]  # Arrow loses the number of rows when it concatenates tables without columns
        return pa.concat_tables(
            [pa.schema([self.schema.field(name) for name in read]).empty_table(), *self._tables(read)]
        ).select(names)

    def to_pandas(self, columns: str | Sequence[str] | None = None) -> "pandas.DataFrame":
        """`table(columns)` for pandas: numbers with nulls become floats, and embeddings become a column of arrays.

        Integers with nulls become Python integers if some exceed 2^53, also in lists and structs. Dates and times of
        day that Python does not have become text, and times in an unknown zone become UTC.
        """
        return pandas_frame(self.table(columns))

    def to_polars(self, columns: str | Sequence[str] | None = None) -> "polars.DataFrame":
        """`table(columns)` for polars, which uses Arrow columns directly.

        Times in a zone that polars does not know, such as `+05:30`, become UTC. The time 24:00 and years that polars
        does not have become text, as do all values beside them in the column.
        """
        return polars_frame(self.table(columns))

    def rows(self, columns: str | Sequence[str] | None = None, pictures: bool = True) -> Iterator[Row]:
        """Iterate over the rows, with one shard in memory at a time.

        Args:
            columns: Names of the columns in each row; None for all.
            pictures: Whether rows include their pictures. If False, no picture is read.

        Raises:
            DatasetError: There is no such column, or a row's picture is missing, is truncated, or has been replaced.
        """
        names = self._names(columns)
        with closing(Pictures(self._snapshot)) as reader:
            needed = reader.needed if pictures else ("row_id",)
            for position in self._positions():
                table = self._read(position, list({*names, *needed}))
                values = {name: _python(table[name]) for name in names}
                images = reader.of(position, table) if pictures else repeat(None)
                for row, image in zip(range(table.num_rows), images, strict=False):
                    yield Row({name: column[row] for name, column in values.items()}, image)

    def picture(self, uid: str | UUID) -> Image.Image:
        """The picture of the row with this uid (32 hex characters or a UUID), in RGB, with the EXIF orientation
        applied. The uids up to that row are read once and remembered.

        Raises DatasetError if no row has this uid, or if its picture is not stored, is missing, or has been replaced.
        """
        stored = own_uid(str(uid))
        found = None if stored is None else self._uids.find(stored)
        if found is None:
            raise DatasetError(f"{self!r} has no row with the uid {uid!r}")
        position, row = found
        with closing(Pictures(self._snapshot)) as reader:
            (picture,) = reader.of(position, self._read(position, reader.needed).slice(row, 1))
        if picture is None:
            raise DatasetError(f"no picture is stored for {uid} (images.store)")
        return picture

    def show(self, n: int = 24, by: str = "similarity", *, around: float | None = None, lowest: bool = False) -> Grid:
        """Show some pairs with their pictures, as a grid in a notebook.

        Args:
            n: Number of pairs.
            by: A numeric column; the pairs with the highest values come first. `uid`: a random sample, always the same.
            around: Instead, show the pairs with the values closest to this number, such as a threshold.
            lowest: Instead, show the pairs with the lowest values.

        Raises:
            DatasetError: There is no such column, it is not numeric, or all of its values are null.
        """
        if n < 1:
            raise DatasetError(f"n must be at least 1, not {n}")
        order = Order(by, around, lowest)
        self._check_order(order)
        shards = (
            (at, self._rows_of(at), table[by]) for at, table in zip(self._positions(), self._tables([by]), strict=True)
        )
        found = first_rows(shards, order, n)
        if not found and len(self):
            raise DatasetError(f"{by} is null in all rows of {self!r}; show(by='uid') shows a random sample")
        with closing(Thumbnails(self._snapshot, SIDE)) as thumbnails:
            pictures = thumbnails.of(ref for ref, _ in found)
        cards = [self._card(ref, pictures[ref], order.value(value)) for ref, value in found]
        return Grid(f"{len(cards):,} of {counted(len(self), 'pair')} of {self!r}, {order}", cards)

    def _check_order(self, order: Order) -> None:
        self._names(order.column)
        kind = self.schema.field(order.column).type
        if order.column != "uid" and not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise DatasetError(f"column {order.column!r} is {kind}; show() needs numbers, or by='uid' (random)")
        if order.column == "uid" and (order.around is not None or order.lowest):
            raise DatasetError("by='uid' shows a random sample; leave out `around` and `lowest`")

    def _card(self, ref: RowRef, thumbnail: Thumbnail, value: str | None) -> Card:
        shard = self._snapshot.chunk.shards[ref.position]
        table = self._snapshot.read(shard, ["caption_clean", "status", "kept", "uid"]).slice(ref.row, 1)
        (row,) = table.to_pylist()
        return Card(thumbnail, value, row["caption_clean"], row["status"], row["kept"], row["uid"])

    def _rows_of(self, position: int) -> npt.NDArray[np.int64]:
        """The rows of a shard that belong to this dataset: int64 [rows]."""
        num_rows = self._snapshot.chunk.shards[position].num_rows
        if self._subset is None:
            return np.arange(num_rows)
        return np.flatnonzero(np.unpackbits(self._chosen[position], count=num_rows))

    @cached_property
    def _chosen(self) -> list[npt.NDArray[np.uint8]]:
        """For a subset: packed bits for each shard, one bit per row."""
        assert self._subset is not None
        with self._selected_once(self._subset):
            return selected_rows(self._snapshot.chunk, self._subset)

    @cached_property
    def _weights(self) -> list[Weights] | None:
        """For a subset with weights: the weights of the rows of each shard."""
        if self._subset is None:
            return None
        with self._selected_once(self._subset):
            return selected_weights(self._snapshot.chunk, self._subset)

    @contextmanager
    def _selected_once(self, subset: Subset) -> Iterator[None]:
        """Raise DatasetError if the files of the subset are gone because it has been selected again."""
        try:
            yield
        except SubsetError as error:
            if read_subset(self._snapshot.store, subset.name).attempt == subset.attempt:
                raise
            raise DatasetError(
                f"the subset {subset.name!r} was selected again, or changed by a purge, since it was opened; "
                "open it again"
            ) from error

    @cached_property
    def _uids(self) -> UidFinder:
        return UidFinder(len(self._snapshot.chunk.shards), self._uids_of)  # a method, which can be pickled

    def _uids_of(self, position: int) -> pa.ChunkedArray:
        return self._read(position, ["uid"])["uid"]

    def _positions(self) -> list[int]:
        """The positions of the shards with rows in this dataset."""
        if self._subset is None:
            return [position for position, shard in enumerate(self._snapshot.chunk.shards) if shard.num_rows]
        return [position for position, bits in enumerate(self._chosen) if bits.any()]

    def _read(self, position: int, columns: Sequence[str]) -> pa.Table:
        """The rows of a shard that belong to this dataset."""
        shard = self._snapshot.chunk.shards[position]

        def read(names: Sequence[str]) -> pa.Table:
            table = self._snapshot.read(shard, names)
            return table if self._subset is None else take_rows(table, self._rows_of(position))

        if self._weights is None:
            return read(columns)
        return read_weighted(read, columns, self._weights[position], renamed_weight(self._snapshot.schema))

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows as one table per shard."""
        return self._snapshot.map(lambda position: self._read(position, columns), self._positions())

    def _names(self, columns: str | Sequence[str] | None) -> list[str]:
        known = self.schema.names
        if columns is None:
            return list(known)
        names = [columns] if isinstance(columns, str) else list(dict.fromkeys(columns))
        for name in names:
            if name not in known:
                if problem := self._snapshot.added.missing(name):
                    raise DatasetError(f"{self!r} has no column {name!r}: {problem}")
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(known)}"
                raise DatasetError(f"{self!r} has no column {name!r}; {hint}")
        return names


def _python(column: pa.ChunkedArray) -> Sequence[Any]:
    """The values as Python objects. Embeddings and other vectors of numbers are arrays that share Arrow's memory,
    unless one of their elements is null."""
    kind = column.type
    if not pa.types.is_fixed_size_list(kind) or not (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    ):
        return python_values(column)
    return [
        value.as_py() if not value.is_valid or value.values.null_count else value.values.to_numpy() for value in column
    ]
