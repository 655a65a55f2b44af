"""The rows of a stretch of the export's order, with what a format needs of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns import PairsReader
from pipeline.export.order import Group, Member
from pipeline.select.chunks import Chunk, describe
from pipeline.select.keys import uid_hashes
from pipeline.select.scan import ALIVE
from pipeline.shards import read_manifest
from pipeline.sources import SourceFacts
from pipeline.storage import Store
from schemas.jobs import BuildJob
from schemas.manifest import Shard, manifest_name

_SHARD, _ROW = "export_shard", "export_row"


class GoneError(ValueError):
    """What was chosen is not there any more; the message names it and says what to do."""


@dataclass(frozen=True)
class Origin:
    """The dataset that is exported from."""

    store: Store
    job: BuildJob
    facts: SourceFacts
    aliases: tuple[str, ...]
    """Added models whose columns are wanted."""


class Gatherer:
    """Reads rows of a dataset in the export's order."""

    def __init__(self, origin: Origin, seed: int | None) -> None:
        self._origin = origin
        self._seed = seed
        self._reader = PairsReader(origin.store, origin.facts, origin.job)

    def close(self) -> None:
        """Let go of files and threads."""
        self._reader.close()

    def rows(self, parts: Sequence[tuple[Group, int, int]], columns: Sequence[str]) -> pa.Table:
        """The rows of a stretch, in order."""
        return pa.concat_tables([self._of_group(*part, columns) for part in parts])

    def pictures(self, rows: pa.Table, aside: IO[bytes]) -> list[tuple[int, int]]:
        """Write the picture of each row to a file; returns (offset, length) per row. Raises GoneError."""
        places: list[tuple[int, int]] = [(0, 0)] * rows.num_rows
        shards = rows[_SHARD].to_numpy()
        for shard in dict.fromkeys(shards.tolist()):
            numbers = np.flatnonzero(shards == shard)
            numbers = numbers[np.argsort(rows[_ROW].to_numpy()[numbers])]  # as they stand in the tar
            some = rows.take(pa.array(numbers))
            for number, picture in zip(numbers.tolist(), self._pictures(int(shard), some), strict=True):
                places[number] = (aside.tell(), len(picture))
                aside.write(picture)
        return places

    def _pictures(self, shard: int, rows: pa.Table) -> Iterator[bytes]:
        generation = int(rows["export_generation"][0].as_py())
        manifest = read_manifest(self._origin.store, manifest_name(shard, generation))
        unit = Shard(shard, manifest.uri, manifest.first_row, manifest.num_rows, "")
        try:
            found = self._reader.pictures(unit, manifest, rows)
        except FileNotFoundError as error:
            raise GoneError(f"shard {shard:09d}: its pictures are gone: {error}") from error
        for row_id, picture in zip(rows["row_id"].to_pylist(), found, strict=True):
            if picture is None:
                raise GoneError(
                    f"{row_id} has no picture: it was not stored (images.store), or its file is gone or changed; "
                    "choose without it"
                )
            yield picture

    def _of_group(self, group: Group, first: int, last: int, columns: Sequence[str]) -> pa.Table:
        tables = [self._of_shard(member, columns) for member in group.members]
        table = pa.concat_tables(tables)
        if self._seed is not None:
            hashes = uid_hashes(table["uid"], self._seed)
            table = table.take(pa.array(np.lexsort((table["uid"].to_numpy(), hashes))))
        return table.slice(first, last - first)

    def _of_shard(self, member: Member, columns: Sequence[str]) -> pa.Table:
        chunk = self._chunk(member)
        rows = np.flatnonzero(self._fates(member) == ALIVE)
        wanted = frozenset({"row_id", "uid", "sha256", "image_tar", "image_offset", "image_length", *columns})
        table = chunk.read(chunk.shards[0], wanted).select(sorted(wanted)).take(pa.array(rows))
        table = table.replace_schema_metadata(None)
        for name, value in ((_SHARD, member.shard), ("export_generation", member.generation)):
            table = table.append_column(name, pa.array(np.full(len(rows), value, np.int64)))
        return table.append_column(_ROW, pa.array(rows))

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
