"""Reads the rows and pictures of a subset in the order of an export."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.columns.added_columns import AddedColumns
from pairmill.pipeline.columns.pairs_reader import PairsReader
from pairmill.pipeline.common.arrow import take_rows
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import Chunk, describe
from pairmill.pipeline.dataset.manifests import may_be_superseded, read_manifest
from pairmill.pipeline.dataset.subset import WEIGHT, read_shard
from pairmill.pipeline.export.order import GroupSlice, ShardGroup, SubsetShard
from pairmill.pipeline.image.decode import ImageError
from pairmill.pipeline.image.plain import plain_picture
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.select.keys import SHUFFLE, mix, uid_hashes
from pairmill.pipeline.select.weights import draws_of, times
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import manifest_name, shards_from_table
from pairmill.schemas.pairs import STORED

_CONVERTED_AHEAD = 256
"""Number of pictures converted at a time; some grow to several times their size."""

PICTURE_COLUMNS = frozenset({"row_id", "uid", "sha256", *STORED.names})
"""The columns needed to find the pictures."""


class MissingDataError(PairmillError, ValueError):
    """Selected rows or their pictures are missing or have changed; the message says which, and what to do."""

    kind = FailureKind.INPUT


@dataclass(frozen=True)
class ExportSource:
    """The dataset of an export. Picklable."""

    store: Store
    job: BuildJob
    mapping: ColumnMapping
    added: AddedColumns
    """The added models and scores."""
    subsets: Store | None = None
    """The folder with the files of the subset; None: the dataset."""

    def open(self, seed: int | None, copies: bool) -> "RowReader":
        """A reader, which must be closed. `copies`: repeat rows as often as the first epoch shows them."""
        return SubsetReader(self, seed, copies)


class RowReader(Protocol):
    """Reads slices of an export's order."""

    def close(self) -> None:
        """Close files and end threads."""

    def rows(self, slices: Sequence[GroupSlice], columns: Sequence[str]) -> "SubsetRows":
        """The rows of a part in order, with these columns and those that `write_pictures` needs."""

    def write_pictures(self, rows: "SubsetRows", file: IO[bytes]) -> list[tuple[int, int]]:
        """Write the picture of each row to a file. Returns (offset, length) per row. Raises MissingDataError."""


class RowSource(Protocol):
    """The source of an export's rows. Picklable."""

    def open(self, seed: int | None, copies: bool) -> RowReader:
        """A reader, which must be closed. `copies`: repeat rows as often as the first epoch shows them."""


@dataclass(frozen=True)
class SubsetRows:
    """Rows of a subset, and the origin of each."""

    table: pa.Table
    origins: pa.Table
    """Shard, generation, row in the pairs file, number of this copy of the row, and number of copies. A separate table,
    because the user's columns may have any names."""

    @property
    def num_rows(self) -> int:
        """Number of rows in each of the tables."""
        return int(self.table.num_rows)

    def take(self, indices: npt.NDArray[np.int64]) -> "SubsetRows":
        """The rows with these indices, in this order."""
        return SubsetRows(take_rows(self.table, indices), self.origins.take(pa.array(indices)))

    def keys(self) -> list[str]:
        """A unique name for each row: the uid or, for copies, `UID-0`, `UID-1`, ..., as in DataComp's resharder."""
        columns = (self.table["uid"], self.origins["copy"], self.origins["copies"])
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        return [uid if copies == 1 else f"{uid}-{copy}" for uid, copy, copies in rows]

    @classmethod
    def concatenated(cls, parts: Sequence["SubsetRows"]) -> "SubsetRows":
        """The rows of all parts, in order."""
        return cls(pa.concat_tables(part.table for part in parts), pa.concat_tables(part.origins for part in parts))


class SubsetReader:
    """Reads slices of an export's order."""

    def __init__(self, source: ExportSource, seed: int | None, copies: bool = False) -> None:
        """`copies`: repeat rows as often as the first epoch shows them."""
        self._source = source
        self._copies = copies
        self._seed = seed
        self._reader = PairsReader(source.store, source.mapping, source.job)
        self._plan = load_plan(source.store).shards
        self._processor = ImageProcessor(source.job.images)
        self._converters = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="plain")

    def close(self) -> None:
        """Close files and end threads."""
        self._converters.shutdown(cancel_futures=True)
        self._reader.close()

    def rows(self, slices: Sequence[GroupSlice], columns: Sequence[str]) -> SubsetRows:
        """The rows of a part in order, with these columns and those that `write_pictures` needs."""
        return SubsetRows.concatenated([self._read_slice(each, frozenset(columns)) for each in slices])

    def write_pictures(self, rows: SubsetRows, file: IO[bytes]) -> list[tuple[int, int]]:
        """Write the picture of each row to a file, as bytes that every reader decodes to the pixels that were scored.

        Returns (offset, length) per row. Raises MissingDataError.
        """
        ranges: list[tuple[int, int]] = [(0, 0)] * rows.num_rows
        shards = rows.origins["shard"].to_numpy()
        for shard in np.unique(shards).tolist():
            indices = np.flatnonzero(shards == shard)
            of_shard = rows.origins["row"].to_numpy()[indices]
            _, first, copy_of = np.unique(of_shard, return_index=True, return_inverse=True)
            written: list[tuple[int, int]] = []  # once per row, in the order of the tar
            for picture in self._pictures(shard, rows.take(indices[first])):
                written.append((file.tell(), len(picture)))
                file.write(picture)
            for index, number in zip(indices.tolist(), copy_of.tolist(), strict=True):
                ranges[index] = written[number]
        return ranges

    def _pictures(self, shard: int, of_shard: SubsetRows) -> Iterator[bytes]:
        rows, generation = of_shard.table, of_shard.origins["generation"][0].as_py()
        with may_be_superseded(self._source.store, shard, generation):
            manifest = read_manifest(self._source.store, manifest_name(shard, generation))
        (planned,) = shards_from_table(self._plan.slice(shard, 1))
        try:
            found = self._reader.pictures(planned, manifest, rows)
        except FileNotFoundError as error:
            raise MissingDataError(f"shard {shard:09d}: its pictures are missing: {error}") from error
        columns = [rows[name].to_pylist() for name in ("row_id", "image_tar", "image_length")]
        for start in range(0, rows.num_rows, _CONVERTED_AHEAD):
            part = slice(start, start + _CONVERTED_AHEAD)
            yield from self._converters.map(self._plain, *(column[part] for column in columns), found[part])

    def _plain(self, row_id: str, name: str | None, length: int | None, picture: bytes | None) -> bytes:
        """A row's picture as bytes that look the same in every reader.

        `name`, `length`: its tar, and its size when it was scored. Raises MissingDataError.
        """
        if name is None:
            raise MissingDataError(
                f"{row_id} has no picture: it was not stored (images.store); select without this row"
            )
        if picture is None or (length is not None and len(picture) != length):
            raise MissingDataError(
                f"{name}: the picture of row {row_id} is missing, truncated or changed since it was scored; "
                "restore the file, or select without this row"
            )
        try:
            return plain_picture(picture, self._processor)
        except ImageError as error:
            raise MissingDataError(f"{name}: the picture of row {row_id} cannot be decoded: {error}") from error

    def _read_slice(self, part: GroupSlice, columns: frozenset[str]) -> SubsetRows:
        """The rows of a slice, in order. Only the group's uids are read to determine the order; other columns are read
        only from shards in the slice."""
        in_slice = self._shuffled_rows(part.group)[part.start : part.end]
        starts = np.cumsum([0, *(shard.num_rows for shard in part.group.shards)])
        needed, parts = columns | PICTURE_COLUMNS | frozenset(self._reader.checksum), []
        for shard, start, end in zip(part.group.shards, starts, starts[1:], strict=False):
            rows = np.sort(in_slice[(in_slice >= start) & (in_slice < end)]) - start
            if len(rows):
                parts.append(self._read(shard, needed).take(rows))
        position = np.empty(len(in_slice), np.int64)  # in the concatenated tables, in order of the group's rows
        position[np.argsort(in_slice)] = np.arange(len(in_slice))
        return SubsetRows.concatenated(parts).take(position)

    def _shuffled_rows(self, group: ShardGroup) -> npt.NDArray[np.int64]:
        """(rows,): indices of the group's rows in the order of the export."""
        rows = np.arange(group.num_rows)
        if self._seed is None:
            return rows
        every = SubsetRows.concatenated([self._read(shard, frozenset({"uid"})) for shard in group.shards])
        hashes, copy = uid_hashes(every.table["uid"], SHUFFLE, self._seed), every.origins["copy"].to_numpy()
        return np.lexsort((rows, np.where(copy > 0, mix(hashes ^ copy.astype(np.uint64)), hashes)))

    def _read(self, shard: SubsetShard, columns: frozenset[str]) -> SubsetRows:
        """The selected rows of a shard. Raises DamagedFileError."""
        chunk = self._chunk(shard)
        chunk.check(chunk.shards[0])
        selection = read_shard(self._source.subsets or self._source.store, shard.path, shard.shard)
        is_added = selection.weights is not None and not self._copies  # copies can have the dataset's own column
        stored = (columns - {WEIGHT} if is_added else columns) | {"uid"}
        table = take_rows(chunk.read(chunk.shards[0], stored).select(sorted(stored)), selection.rows)
        copies = np.ones(len(selection.rows), np.int64)
        if is_added:
            table = table.append_column(WEIGHT, pa.array(selection.weights))
        elif selection.weights is not None:
            copies = times(selection.weights, draws_of(table["uid"]), 0)
        index = np.repeat(np.arange(len(copies)), copies)
        values = {
            "shard": np.full(len(index), shard.shard),
            "generation": np.full(len(index), shard.generation),
            "row": selection.rows[index],
            "copy": np.arange(len(index)) - (np.cumsum(copies) - copies)[index],
            "copies": copies[index],
        }
        table = table.select(sorted(columns)).replace_schema_metadata(None)
        return SubsetRows(take_rows(table, index) if self._copies else table, pa.table(values))

    def _chunk(self, shard: SubsetShard) -> Chunk:
        try:
            chunk = describe(self._source.store, [(shard.shard, shard.generation)], self._source.added.names)
        except FileNotFoundError as error:
            raise MissingDataError(f"shard {shard.shard:09d} vanished after the subset was made: {error}") from error
        if chunk.shards[0].pairs_blake2b != shard.pairs_blake2b:
            raise MissingDataError(f"shard {shard.shard:09d} was rebuilt after the subset was made; select again")
        return chunk
