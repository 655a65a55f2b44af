"""The rows of a stretch of the export's order, with what a format needs of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.columns.added_model import PairsReader
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import Chunk, describe
from pairmill.pipeline.dataset.shards import read_manifest
from pairmill.pipeline.dataset.subset import ALIVE
from pairmill.pipeline.export.order import Group, Member
from pairmill.pipeline.select.keys import SHUFFLE, uid_hashes
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import manifest_name, shards_from_table
from pairmill.schemas.pairs import STORED

_SHARD, _GENERATION, _ROW = "export_shard", "export_generation", "export_row"
_NEEDED = frozenset({"row_id", "uid", "sha256", *STORED.names})


class GoneError(PairmillError, ValueError):
    """What was chosen is not there any more; the message names it and says what to do."""

    kind = FailureKind.INPUT


@dataclass(frozen=True)
class Origin:
    """The dataset that is exported from."""

    store: Store
    job: BuildJob
    mapping: ColumnMapping
    aliases: tuple[str, ...]
    """Added models whose columns are wanted."""


class Gatherer:
    """Reads rows of a dataset in the export's order."""

    def __init__(self, origin: Origin, seed: int | None) -> None:
        self._origin = origin
        self._seed = seed
        self._reader = PairsReader(origin.store, origin.mapping, origin.job)
        self._plan = load_plan(origin.store).shards

    def close(self) -> None:
        """Let go of files and threads."""
        self._reader.close()

    def rows(self, parts: Sequence[tuple[Group, int, int]], columns: Sequence[str]) -> pa.Table:
        """The rows of a stretch, in order."""
        return pa.concat_tables([self._of_group(*part, frozenset(columns)) for part in parts])

    def pictures(self, rows: pa.Table, aside: IO[bytes]) -> list[tuple[int, int]]:
        """Write the picture of each row to a file; returns (offset, length) per row. Raises GoneError."""
        places: list[tuple[int, int]] = [(0, 0)] * rows.num_rows
        shards = rows[_SHARD].to_numpy()
        for shard in np.unique(shards).tolist():
            numbers = np.flatnonzero(shards == shard)
            numbers = numbers[np.argsort(rows[_ROW].to_numpy()[numbers])]  # as they stand in the tar
            some = rows.take(pa.array(numbers))
            for number, picture in zip(numbers.tolist(), self._pictures(shard, some), strict=True):
                places[number] = (aside.tell(), len(picture))
                aside.write(picture)
        return places

    def _pictures(self, shard: int, rows: pa.Table) -> Iterator[bytes]:
        manifest = read_manifest(self._origin.store, manifest_name(shard, rows[_GENERATION][0].as_py()))
        (planned,) = shards_from_table(self._plan.slice(shard, 1))
        try:
            found = self._reader.pictures(planned, manifest, rows)
        except FileNotFoundError as error:
            raise GoneError(f"shard {shard:09d}: its pictures are gone: {error}") from error
        lengths = rows["image_length"].to_pylist()
        for row_id, length, picture in zip(rows["row_id"].to_pylist(), lengths, found, strict=True):
            if picture is None or (length is not None and len(picture) != length):
                raise GoneError(
                    f"{row_id} has no picture: it was not stored (images.store), or its file is gone, cut or changed; "
                    "choose without it"
                )
            yield picture

    def _of_group(self, group: Group, first: int, last: int, columns: frozenset[str]) -> pa.Table:
        """Ranks [first, last) of a group. The order is found from the uids alone; of the rest, only these are read."""
        uids = pa.concat_tables([self._read(member, frozenset({"uid"})) for member in group.members])["uid"]
        order = np.arange(len(uids))
        if self._seed is not None:
            order = np.lexsort((order, uid_hashes(uids, SHUFFLE, self._seed)))
        wanted = order[first:last]  # places in the group, in the export's order
        starts = np.cumsum([0, *(member.rows for member in group.members)])
        tables = []
        for member, start, end in zip(group.members, starts, starts[1:], strict=False):
            rows = np.sort(wanted[(wanted >= start) & (wanted < end)]) - start
            if len(rows):
                tables.append(self._read(member, columns | _NEEDED).take(pa.array(rows)))
        place = np.empty(len(wanted), np.int64)
        place[np.argsort(wanted)] = np.arange(len(wanted))
        return pa.concat_tables(tables).take(pa.array(place))

    def _read(self, member: Member, columns: frozenset[str]) -> pa.Table:
        """The chosen rows of a shard."""
        chunk = self._chunk(member)
        rows = np.flatnonzero(self._fates(member) == ALIVE)
        table = chunk.read(chunk.shards[0], columns).select(sorted(columns)).take(pa.array(rows))
        for name, value in ((_SHARD, member.shard), (_GENERATION, member.generation)):
            table = table.append_column(name, pa.array(np.full(len(rows), value, np.int64)))
        return table.append_column(_ROW, pa.array(rows)).replace_schema_metadata(None)

    def _chunk(self, member: Member) -> Chunk:
        try:
            chunk = describe(self._origin.store, [(member.shard, member.generation)], self._origin.aliases)
        except FileNotFoundError as error:
            raise GoneError(f"shard {member.shard:09d} is not there as it was chosen from: {error}") from error
        if chunk.shards[0].pairs_blake2b != member.pairs_blake2b:
            raise GoneError(f"shard {member.shard:09d} is another one than was chosen from; select again")
        return chunk

    def _fates(self, member: Member) -> "np.ndarray[tuple[int], np.dtype[np.int8]]":
        with self._origin.store.open(member.fates) as file:
            table = pq.ParquetFile(file).read(columns=["shard", "fates"])
        index = table["shard"].to_pylist().index(member.shard)
        return np.frombuffer(table["fates"][index].as_buffer(), np.int8)
