"""Blanks withdrawn rows in the files of `input/`: converted lists, and indexes of tars and folders.

A blank row keeps its position, because the plan refers to rows by number, and is marked as withdrawn. In a list of
captions, single captions can be blanked. The user's own files are not touched; the ledger blocks their rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.purge.ledger import Ledger
from pairmill.pipeline.purge.matching import Mask, Matcher
from pairmill.pipeline.source.columns import columns_of
from pairmill.pipeline.source.files import MALFORMED_COLUMN, WITHDRAWN_CAPTION, WITHDRAWN_ROW
from pairmill.pipeline.source.planned import Plan
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.manifest import Shard, ShardManifest, shards_from_table
from pairmill.schemas.status import Status

_FOLDER = "input/"
_ROWS = 4_096
"""Number of rows that are read at a time outside planned shards."""

Blanks = dict[int, set[int] | None]
"""Row of a file -> indices of the captions to blank; None for the whole row."""


def delete_unplanned(store: Store, plan: Plan) -> Iterator[str]:
    """Delete files of `input/` that the plan does not use. An interrupted run converted them. Yields each name before
    deleting the file."""
    used = {*(file.uri for file in plan.inputs), plan.mapping.shared_urls}
    names = [f"{_FOLDER}{name}" for name in store.list(_FOLDER.rstrip("/")) if name.endswith(".parquet")]
    for name in names:
        if name not in used:
            yield name
            store.delete(name)


def blank_withdrawn(store: Store, plan: Plan) -> None:
    """Run `purge_inputs` with the current ledger, for builds and retries. Does nothing if the ledger is empty."""
    if not (ledger := Ledger.load(store)).is_empty:
        for _ in purge_inputs(store, plan, Matcher(ledger)):
            pass


def purge_inputs(store: Store, plan: Plan, matcher: Matcher) -> Iterator[str]:
    """Blank the withdrawn rows in the files of `input/`. Yields the name of each file before it changes.

    In committed shards, these are the rows that are neither in `pairs/` nor in `rejects/`, so of these shards, only
    those whose manifests count withdrawn rows are read. Rows of other shards are compared with the ledger.
    """
    planned = {file.uri: file.num_rows for file in plan.inputs if file.uri.startswith(_FOLDER)}
    if not planned:
        return
    shards: dict[str, list[Shard]] = {}
    for shard in shards_from_table(plan.shards.filter(pc.starts_with(plan.shards["uri"], _FOLDER))):
        shards.setdefault(shard.uri, []).append(shard)
    manifests = {manifest.shard: manifest for manifest in read_manifests(store)}
    reader = ShardReader(store, plan.mapping)
    try:
        for uri, rows in planned.items():
            file = _InputFile(store, plan, uri, rows, shards.get(uri, []))
            if blanks := file.blanks(reader, matcher, manifests):
                yield uri
                file.write(blanks)
    finally:
        reader.close()


@dataclass(frozen=True)
class _InputFile:
    store: Store
    plan: Plan
    uri: str
    num_rows: int
    shards: list[Shard]

    def blanks(self, reader: ShardReader, matcher: Matcher, manifests: Mapping[int, ShardManifest]) -> Blanks:
        """The withdrawn rows that are not blank yet."""
        blanks: Blanks = {}
        for piece, manifest in self._pieces(manifests):
            if manifest is not None and not manifest.withdrawn:
                continue
            table = reader.read(piece)
            mask = matcher.mask(table) if manifest is None else ~self._stored(table["row_id"], manifest)
            mask &= pc.not_equal(table["status"], Status.WITHDRAWN.value).to_numpy()
            for row_id in table["row_id"].filter(pa.array(mask)).to_pylist():
                _, row, *caption = (int(part) for part in row_id.split(":"))
                _add(blanks, piece.first_row + row, caption[0] if caption else None)
        return blanks

    def _pieces(self, manifests: Mapping[int, ShardManifest]) -> Iterator[tuple[Shard, ShardManifest | None]]:
        """The shards, each with its manifest if it is committed, then the rows that `source.limit_rows` left out of the
        plan, in pieces."""
        yield from ((shard, manifests.get(shard.shard)) for shard in self.shards)
        start = max((shard.first_row + shard.num_rows for shard in self.shards), default=0)
        for first in range(start, self.num_rows, _ROWS):
            yield Shard(0, self.uri, first, min(_ROWS, self.num_rows - first), ""), None

    def _stored(self, row_ids: pa.ChunkedArray, manifest: ShardManifest) -> Mask:
        """Whether each row is in one of the shard's files: bool [rows]."""
        tables = [read_table(self.store, manifest.files[name].path, ["row_id"]) for name in ("pairs", "rejects")]
        stored = pa.concat_arrays([table["row_id"].combine_chunks() for table in tables])
        mask: Mask = pc.is_in(row_ids, value_set=stored).to_numpy()
        return mask

    def write(self, blanks: Blanks) -> None:
        """Write the file with these rows blank, in the same row groups."""
        first = 0
        with self.store.open(self.uri) as source, pq.ParquetFile(source) as parquet, self.store.new_file() as target:
            schema = parquet.schema_arrow
            caption = columns_of(self.plan.mapping, schema.names).caption
            with pq.ParquetWriter(target, schema, compression="zstd", write_page_checksum=True) as writer:
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group)
                    blank = _blanked(table, first, blanks, caption)
                    writer.write_table(blank, row_group_size=max(1, table.num_rows))
                    first += table.num_rows
                metadata = parquet.metadata.metadata or {}
                writer.add_key_value_metadata({key: value for key, value in metadata.items() if key != b"ARROW:schema"})
            self.store.replace_from(self.uri, target)


def _add(blanks: Blanks, row: int, caption: int | None) -> None:
    if caption is None:
        blanks[row] = None
    elif (found := blanks.setdefault(row, set())) is not None:
        found.add(caption)


def _blanked(table: pa.Table, first: int, blanks: Blanks, caption: str | None) -> pa.Table:
    """The table of a row group, which begins at row `first` of the file, with these rows blank."""
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
    return pa.Table.from_arrays(columns, schema=table.schema)


def _null_where(column: pa.ChunkedArray, mask: np.ndarray) -> pa.ChunkedArray:
    """The column with null in these rows. Works for all types, including lists of structs."""
    indices = pa.array(np.arange(len(column)), mask=mask)
    return column.take(indices)
