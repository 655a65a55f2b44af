"""Reads the generation of a shard that a retry is based on: all rows, and which of them to fetch again."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.arrow import take_rows
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.integrity import DamagedFileError, is_intact
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.dataset.webdataset_tar import read_range
from pairmill.schemas.manifest import DataFile, ShardManifest
from pairmill.schemas.pairs import CHECKSUM


@dataclass(frozen=True)
class PreviousGeneration:
    """A committed shard, read back. The tables include embeddings."""

    store: Store
    manifest: ShardManifest
    pairs: pa.Table
    rejects: pa.Table

    def without(self, row_ids: pa.ChunkedArray) -> "PreviousGeneration":
        """This shard without the given rows, which the next generation replaces."""
        kept = {
            name: table.filter(pc.invert(pc.is_in(table["row_id"], value_set=row_ids.combine_chunks())))
            for name, table in (("pairs", self.pairs), ("rejects", self.rejects))
        }
        return PreviousGeneration(self.store, self.manifest, **kept)

    def pictures(self, has_checksums: bool) -> dict[str, bytes]:
        """row_id -> stored picture, for all pairs that have one. Raises DamagedFileError if a picture has changed."""
        stored = self.pairs.filter(self.pairs["image_tar"].is_valid())
        if not stored.num_rows:
            return {}
        crcs = stored[CHECKSUM.name].to_pylist() if has_checksums else repeat(None, stored.num_rows)
        columns = (stored[name].to_pylist() for name in ("row_id", "image_offset", "image_length"))
        name, found = self.manifest.files["images"].path, {}
        with self.store.open(name) as tar:
            for row_id, offset, length, crc in zip(*columns, crcs, strict=True):
                found[row_id] = read_range(tar, offset, length)
                if not is_intact(found[row_id], crc):
                    raise DamagedFileError(f"{self.store.path(name)} is damaged at the picture of row {row_id}")
        return found


def read_previous(store: Store, manifest: ShardManifest) -> PreviousGeneration:
    """Read a committed shard back."""
    return PreviousGeneration(
        store, manifest, _read(store, manifest.files["pairs"]), _read(store, manifest.files["rejects"])
    )


def failed_row_ids(store: Store, manifest: ShardManifest, statuses: Collection[str]) -> pa.ChunkedArray:
    """The rejected rows with one of these statuses. Pairs are never included."""
    rejects = _read(store, manifest.files["rejects"], ["row_id", "status"])
    return rejects["row_id"].filter(pc.is_in(rejects["status"], value_set=pa.array(sorted(statuses), pa.string())))


def sort_by_row_id(table: pa.Table) -> pa.Table:
    """The rows in input order, sorted by the numbers in `SHARD:ROW` or `SHARD:ROW:CAPTION`."""
    keys = [tuple(int(part) for part in row_id.split(":")) for row_id in table["row_id"].to_pylist()]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return take_rows(table, np.array(order, np.int64))


def _read(store: Store, file: DataFile, columns: list[str] | None = None) -> pa.Table:
    return read_table(store, file.path, columns)
