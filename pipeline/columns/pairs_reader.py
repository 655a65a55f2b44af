"""Reads committed pairs with their pictures, for an added model or a score."""

from itertools import repeat

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.arrow import binary_column
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.integrity import DamagedFileError, is_intact
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.dataset.webdataset_tar import read_range
from pairmill.pipeline.source.corpus.load import Loader
from pairmill.pipeline.source.mapping import ColumnMapping, NoPictures, WebPictures
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import Shard, ShardManifest
from pairmill.schemas.pairs import CHECKSUM, IMAGE_COLUMN, IS_PAIR_COLUMN, STORED

_READ = ("row_id", "caption_clean", "sha256", "status", "status_detail", "width", "height", "phash", "one_color")
_NAMED = ("image_tar", "row_id")


class PairsReader:
    """Reads committed pairs with their pictures. Thread-safe."""

    def __init__(self, store: Store, mapping: ColumnMapping, job: BuildJob) -> None:
        self._store = store
        self._mapping = mapping
        self._reader = ShardReader(store, mapping)
        self._loader = Loader(job, store.files)

    @property
    def checksum(self) -> tuple[str, ...]:
        """The column with the checksums that `pictures` verifies, if the dataset has it."""
        return (CHECKSUM.name,) if self._mapping.has_checksums else ()

    def close(self) -> None:
        """Close files and stop threads."""
        self._reader.close()
        self._loader.close()

    def read(self, shard: Shard, manifest: ShardManifest) -> pa.Table:
        """The rows of the pairs file, in its order, for the encode stage. A picture is null if it is missing from a
        corpus or has changed there. Raises DamagedFileError if a picture in the dataset's own tar has changed."""
        pairs = read_table(self._store, manifest.files["pairs"].path, [*_READ, *STORED.names, *self.checksum])
        pairs = pairs.replace_schema_metadata(None)
        pictures = self.pictures(shard, manifest, pairs)
        if "images" in manifest.files:
            for picture, name, row_id in zip(pictures, *(pairs[n].to_pylist() for n in _NAMED), strict=True):
                if picture is None and name is not None:
                    raise DamagedFileError(
                        f"{self._store.path(name)} is damaged at the picture of row {row_id}; "
                        f"run `{pairmill_command('verify', self._store.root)}`"
                    )
        table = pairs.append_column("image", binary_column(pictures))
        return table.append_column(IS_PAIR_COLUMN, pa.repeat(True, pairs.num_rows))

    def pictures(self, shard: Shard, manifest: ShardManifest, rows: pa.Table) -> list[bytes | None]:
        """The picture of each given row of a pairs file. None if the row has no picture, or if the picture is missing
        or has changed."""
        if "images" in manifest.files:
            image_refs = zip(*(rows[name].to_pylist() for name in STORED.names), strict=True)
            with self._store.open(manifest.files["images"].path) as file:
                found = [
                    None if tar is None else read_range(file, offset, length) for tar, offset, length in image_refs
                ]
            crcs = rows[CHECKSUM.name].to_pylist() if self.checksum else repeat(None, len(found))
            return [each if each and is_intact(each, crc) else None for each, crc in zip(found, crcs, strict=True)]
        if isinstance(self._mapping.pictures, WebPictures):  # a build that stored no pictures
            return [None] * rows.num_rows
        table = self._reader.read(shard)
        table = table.filter(pc.is_in(table["row_id"], value_set=rows["row_id"].combine_chunks()))
        loaded = self._loader(table, has_pictures=not isinstance(self._mapping.pictures, NoPictures))
        columns = zip(*(loaded[name].to_pylist() for name in ("row_id", "sha256", IMAGE_COLUMN.name)), strict=True)
        by_row = {(row_id, sha256): image for row_id, sha256, image in columns}
        return [by_row.get(key) for key in zip(rows["row_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True)]
