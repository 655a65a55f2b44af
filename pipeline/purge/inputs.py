"""Blanks withdrawn rows in `input/`: converted lists, and indexes of tars and folders.

A blank row keeps its position, because row numbers in the plan count on it, and says that it was withdrawn. Of a list
of captions, single ones can go. The user's own files are not touched; the ledger blocks their rows.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.purge.matching import Matcher
from pairmill.pipeline.source.columns import columns_of
from pairmill.pipeline.source.files import MALFORMED_COLUMN, WITHDRAWN_CAPTION, WITHDRAWN_ROW
from pairmill.pipeline.source.planned import Plan
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.manifest import Shard, shards_from_table
from pairmill.schemas.status import Status

_FOLDER = "input/"
_ROWS = 4_096
"""Rows that are read at a time where no shard is planned."""

Blanks = dict[int, set[int] | None]
"""Row of a file -> indices of the captions to blank; None: the whole row."""


def delete_unplanned(store: Store, plan: Plan) -> list[str]:
    """Delete files of `input/` that the plan does not use: an interrupted run converted them. Returns their names."""
    used = {*(file.uri for file in plan.inputs), plan.mapping.shared_urls}
    names = [f"{_FOLDER}{name}" for name in store.list(_FOLDER.rstrip("/")) if name.endswith(".parquet")]
    unused = [name for name in names if name not in used]
    for name in unused:
        store.delete(name)
    return unused


def purge_inputs(store: Store, plan: Plan, matcher: Matcher, committed: Collection[int]) -> list[str]:
    """Blank what is withdrawn in the files of `input/`. Returns the names of the files that changed.

    Rows of committed shards are known by their position; only other rows are read and compared with the ledger.
    """
    planned = {file.uri: file.num_rows for file in plan.inputs if file.uri.startswith(_FOLDER)}
    changed: list[str] = []
    if not planned:
        return changed
    shards = _shards_by_uri(plan)
    known = _positions(matcher.ledger.row_ids)
    reader = ShardReader(store, plan.mapping)
    try:
        for uri, num_rows in planned.items():
            file = _InputFile(store, plan, uri, num_rows, shards.get(uri, []))
            blanks = file.known(known)
            file.add_unknown(blanks, reader, matcher, committed)
            if blanks and file.write(blanks):
                changed.append(uri)
    finally:
        reader.close()
    return changed


def _shards_by_uri(plan: Plan) -> dict[str, list[Shard]]:
    found: dict[str, list[Shard]] = {}
    for shard in shards_from_table(plan.shards.filter(pc.starts_with(plan.shards["uri"], _FOLDER))):
        found.setdefault(shard.uri, []).append(shard)
    return found


def _positions(row_ids: Collection[str]) -> dict[int, list[tuple[int, int | None]]]:
    """Shard -> (row, caption) of each `SHARD:ROW` or `SHARD:ROW:CAPTION`."""
    found: dict[int, list[tuple[int, int | None]]] = {}
    for row_id in row_ids:
        shard, row, *caption = (int(part) for part in row_id.split(":"))
        found.setdefault(shard, []).append((row, caption[0] if caption else None))
    return found


@dataclass(frozen=True)
class _InputFile:
    store: Store
    plan: Plan
    uri: str
    num_rows: int
    shards: list[Shard]

    def known(self, positions: Mapping[int, list[tuple[int, int | None]]]) -> Blanks:
        """The withdrawn rows of its shards."""
        blanks: Blanks = {}
        for shard in self.shards:
            for row, caption in positions.get(shard.shard, ()):
                _add(blanks, shard.first_row + row, caption)
        return blanks

    def add_unknown(self, blanks: Blanks, reader: ShardReader, matcher: Matcher, committed: Collection[int]) -> None:
        """Add the rows that are in no committed shard and match the ledger."""
        for piece in self._uncommitted(committed):
            table = reader.read(piece)
            mask = matcher.mask(table) & pc.not_equal(table["status"], Status.WITHDRAWN.value).to_numpy()
            for row_id in table["row_id"].filter(pa.array(mask)).to_pylist():
                _, row, *caption = (int(part) for part in row_id.split(":"))
                _add(blanks, piece.first_row + row, caption[0] if caption else None)

    def _uncommitted(self, committed: Collection[int]) -> Iterator[Shard]:
        """Planned shards that are not committed, then the rows that `source.limit_rows` left unplanned."""
        yield from (shard for shard in self.shards if shard.shard not in committed)
        start = max((shard.first_row + shard.num_rows for shard in self.shards), default=0)
        for first in range(start, self.num_rows, _ROWS):
            yield Shard(0, self.uri, first, min(_ROWS, self.num_rows - first), "")

    def write(self, blanks: Blanks) -> bool:
        """Write the file without these rows, with the same row groups. Returns whether anything changed."""
        caption, is_changed, first = self.plan.mapping.caption_column, False, 0
        with self.store.open(self.uri) as source, pq.ParquetFile(source) as parquet, self.store.new_file() as target:
            schema = parquet.schema_arrow
            names = columns_of(self.plan.mapping, schema.names)
            caption = names.caption
            with pq.ParquetWriter(target, schema, compression="zstd", write_page_checksum=True) as writer:
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group)
                    new = _blanked(table, first, blanks, caption)
                    is_changed |= new is not table
                    writer.write_table(new, row_group_size=max(1, table.num_rows))
                    first += table.num_rows
                metadata = parquet.metadata.metadata or {}
                writer.add_key_value_metadata({key: value for key, value in metadata.items() if key != b"ARROW:schema"})
            if is_changed:
                self.store.replace_from(self.uri, target)
        return is_changed


def _add(blanks: Blanks, row: int, caption: int | None) -> None:
    if caption is None:
        blanks[row] = None
    elif (found := blanks.setdefault(row, set())) is not None:
        found.add(caption)


def _blanked(table: pa.Table, first: int, blanks: Blanks, caption: str | None) -> pa.Table:
    """The table of a row group without these rows; itself if they are blank already."""
    here = {row - first: captions for row, captions in blanks.items() if first <= row < first + table.num_rows}
    if not here:
        return table
    lists = table[caption].to_pylist() if caption is not None and pa.types.is_nested(table[caption].type) else None
    whole = {row for row, captions in here.items() if captions is None or lists is None}
    parts = {row: captions for row, captions in here.items() if row not in whole and captions is not None}
    if lists is not None:
        for row, captions in parts.items():
            lists[row] = [
                WITHDRAWN_CAPTION if index in captions else each for index, each in enumerate(lists[row] or [])
            ]
            if not lists[row] or all(each == WITHDRAWN_CAPTION for each in lists[row]):
                whole.add(row)
    mask = np.zeros(table.num_rows, np.bool_)
    mask[list(whole)] = True
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        if field.name == caption and lists is not None:
            column = pa.chunked_array([pa.array(lists, field.type)])
        if field.name == MALFORMED_COLUMN:
            column = pc.if_else(pa.array(mask), pa.scalar(WITHDRAWN_ROW, field.type), column)
        else:
            column = _null_where(column, mask)
        columns.append(column)
    new = pa.Table.from_arrays(columns, schema=table.schema)
    return table if new.equals(table) else new


def _null_where(column: pa.ChunkedArray, mask: np.ndarray) -> pa.ChunkedArray:
    """The column with null in these rows. Works for all types, such as lists of structs."""
    indices = pa.array(np.arange(len(column)), mask=mask)
    return column.take(indices)
