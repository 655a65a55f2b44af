"""The generation of a shard that a retry builds on: what it holds, and which of its rows are to be fetched again."""

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.dataset.webdataset_tar import read_range
from pairmill.schemas.manifest import DataFile, ShardManifest


@dataclass(frozen=True)
class PreviousGeneration:
    """A committed shard, read back. The tables are its files', embeddings included."""

    store: Store
    manifest: ShardManifest
    pairs: pa.Table
    rejects: pa.Table

    def without(self, row_ids: pa.ChunkedArray) -> "PreviousGeneration":
        """The same without some rows, which a newer generation has made again."""
        kept = {
            name: table.filter(pc.invert(pc.is_in(table["row_id"], value_set=row_ids.combine_chunks())))
            for name, table in (("pairs", self.pairs), ("rejects", self.rejects))
        }
        return PreviousGeneration(self.store, self.manifest, **kept)

    def pictures(self) -> dict[str, bytes]:
        """row_id -> stored picture, of all pairs that have one."""
        places = self.pairs.filter(self.pairs["image_tar"].is_valid()).select(
            ["row_id", "image_offset", "image_length"]
        )
        if not places.num_rows:
            return {}
        with self.store.open(self.manifest.files["images"].path) as tar:
            return {
                row["row_id"]: read_range(tar, row["image_offset"], row["image_length"]) for row in places.to_pylist()
            }


def read_previous(store: Store, manifest: ShardManifest) -> PreviousGeneration:
    """Read a committed shard back."""
    return PreviousGeneration(
        store, manifest, _read(store, manifest.files["pairs"]), _read(store, manifest.files["rejects"])
    )


def failed_row_ids(store: Store, manifest: ShardManifest, statuses: Collection[str]) -> pa.ChunkedArray:
    """Which rows of a shard ended with one of these statuses. Pairs are never made again: their picture is there."""
    rejects = _read(store, manifest.files["rejects"], ["row_id", "status"])
    return rejects["row_id"].filter(pc.is_in(rejects["status"], value_set=pa.array(sorted(statuses), pa.string())))


def by_place(table: pa.Table) -> pa.Table:
    """The rows in the order of the plan: `SHARD:ROW` and `SHARD:ROW:CAPTION` as numbers."""
    places = [tuple(int(part) for part in row_id.split(":")) for row_id in table["row_id"].to_pylist()]
    order = sorted(range(len(places)), key=places.__getitem__)
    return table.take(pa.array(order, pa.int64()))


def _read(store: Store, file: DataFile, columns: list[str] | None = None) -> pa.Table:
    return read_table(store, file.path, columns)
