"""Reads the rows and pictures of a mixture in the order of an export."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa

from pairmill.pipeline.columns.common_columns import DATASET
from pairmill.pipeline.export.order import GroupSlice
from pairmill.pipeline.export.reader import PICTURE_COLUMNS, ExportSource, RowReader, SubsetRows
from pairmill.pipeline.select.keys import SHUFFLE, mix, uid_hashes
from pairmill.schemas.pairs import CHECKSUM


@dataclass(frozen=True)
class MixtureSources:
    """The datasets of an export. Picklable."""

    names: tuple[str, ...]
    sources: tuple[ExportSource, ...]
    schema: pa.Schema
    """Columns that all datasets have, and DATASET."""

    def open(self, seed: int | None, copies: bool) -> RowReader:
        """A reader, which must be closed. `copies`: repeat rows as often as the first epoch shows them."""
        return MixtureReader(self, seed, copies)


class MixtureReader:
    """Reads slices of an export's order. The `source` of a group is the number of its dataset."""

    def __init__(self, mixture: MixtureSources, seed: int | None, copies: bool) -> None:
        self._mixture = mixture
        self._seed = seed
        self._readers = [source.open(seed, copies) for source in mixture.sources]

    def close(self) -> None:
        """Close files and end threads."""
        for reader in self._readers:
            reader.close()

    def rows(self, slices: Sequence[GroupSlice], columns: Sequence[str]) -> SubsetRows:
        """The rows of a part, with these columns and those that `write_pictures` needs. With a seed, the rows of all
        datasets are shuffled together."""
        fields = [self._mixture.schema.field(name) for name in dict.fromkeys((*columns, *sorted(PICTURE_COLUMNS)))]
        if CHECKSUM.name not in {field.name for field in fields}:
            fields.append(CHECKSUM)
        schema = pa.schema(fields)
        parts = [self._of_source(number, slices, schema) for number in sorted({each.group.source for each in slices})]
        rows = SubsetRows.concatenated(parts)
        return rows if self._seed is None else rows.take(self._shuffled(rows, self._seed))

    def write_pictures(self, rows: SubsetRows, file: IO[bytes]) -> list[tuple[int, int]]:
        """Write the picture of each row to a file. Returns (offset, length) per row. Raises MissingDataError."""
        ranges: list[tuple[int, int]] = [(0, 0)] * rows.num_rows
        sources = rows.origins["source"].to_numpy()
        for number in np.unique(sources).tolist():
            indices = np.flatnonzero(sources == number)
            written = self._readers[number].write_pictures(rows.take(indices), file)
            for index, each in zip(indices.tolist(), written, strict=True):
                ranges[index] = each
        return ranges

    def _of_source(self, number: int, slices: Sequence[GroupSlice], schema: pa.Schema) -> SubsetRows:
        wanted = [name for name in schema.names if name not in (DATASET, CHECKSUM.name)]
        rows = self._readers[number].rows([each for each in slices if each.group.source == number], wanted)
        columns = [self._column(rows.table, number, field) for field in schema]
        origins = rows.origins.append_column("source", pa.array(np.full(rows.num_rows, number)))
        return SubsetRows(pa.table(columns, schema=schema), origins)

    def _column(self, table: pa.Table, number: int, field: pa.Field) -> pa.Array | pa.ChunkedArray:
        if field.name == DATASET:
            return pa.repeat(self._mixture.names[number], table.num_rows)
        if field.name in table.column_names:
            return table[field.name]
        return pa.nulls(table.num_rows, field.type)  # an older dataset without checksums

    def _shuffled(self, rows: SubsetRows, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(rows,): indices that shuffle the rows of all datasets together. The hashes are mixed once more, so this
        order is independent of the order in each dataset."""
        hashes, copy = mix(uid_hashes(rows.table["uid"], SHUFFLE, seed)), rows.origins["copy"].to_numpy()
        return np.argsort(mix(hashes ^ copy.astype(np.uint64)), kind="stable")
