"""Adds a model to a finished dataset: its columns are in `columns/ALIAS/`, with the same rows as `pairs/`.

columns/clip_l14/000000000.parquet             row_id, similarity_clip_l14, image_embedding_..., text_embedding_...
columns/clip_l14/manifests/000000000.json      written last; says which pairs file it belongs to
columns/clip_l14/model.json                    the model; a different one under the same alias is refused
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import repeat
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.arrow import binary_column
from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.integrity import DamagedFileError, is_intact
from pairmill.pipeline.dataset.manifests import ManifestError, committed, read_columns_manifest, read_record
from pairmill.pipeline.dataset.parquet import read_table, write_table
from pairmill.pipeline.dataset.webdataset_tar import read_range
from pairmill.pipeline.source.corpus.load import Loader
from pairmill.pipeline.source.mapping import ColumnMapping, NoPictures, WebPictures
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.batch import ShardBatch
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import (
    SCHEMA_VERSION,
    ColumnsManifest,
    DataFile,
    Shard,
    ShardManifest,
    manifest_name,
)
from pairmill.schemas.pairs import CHECKSUM, IMAGE_COLUMN, IS_PAIR_COLUMN, STORED, score_column_names

_READ = ("row_id", "caption_clean", "sha256", "status", "status_detail", "width", "height", "phash", "one_color")
_READERS = 32
_NAMED = ("image_tar", "row_id")


def columns_done(store: Store, alias: str) -> dict[int, int]:
    """Shard -> highest generation with this model's columns."""
    return committed(store, f"columns/{alias}/manifests")


@dataclass(frozen=True, slots=True)
class AddedModels:
    """Aliases of the models that were added to a dataset, by whether some of its shards have their columns."""

    complete: tuple[str, ...]
    """All of these shards have them, in these generations."""
    incomplete: tuple[str, ...]
    """Some of these shards lack them, because they are newer, or the command was interrupted."""

    def missing(self, column: str) -> str | None:
        """Why a column that belongs to an incomplete model cannot be read; None for any other column."""
        for alias in self.incomplete:
            if column in score_column_names(alias):
                return f"some shards lack the model {alias!r}: run embed --add-model again"
        return None


def added_models(store: Store, generations: Mapping[int, int]) -> AddedModels:
    """The models that were added to these shards (shard -> generation)."""
    added = [name for name in store.folders("columns") if store.exists(f"columns/{name}/model.json")]
    complete = [alias for alias in added if generations.items() <= columns_done(store, alias).items()]
    return AddedModels(tuple(complete), tuple(alias for alias in added if alias not in complete))


class AddedModel(ModelConfig):
    """`columns/ALIAS/model.json`: the model, and the fingerprint of the job that added it."""

    fingerprint: str


def read_card(store: Store, alias: str) -> AddedModel:
    """The added model with this alias. Raises ManifestError and FileNotFoundError."""
    remedy = "move its folder elsewhere and run embed --add-model again"
    return read_record(store, f"columns/{alias}/model.json", AddedModel, remedy)


def pictures_left_out(store: Store, alias: str) -> dict[str, int]:
    """Name of a shard's newest manifest -> number of its pictures without an embedding. Omits shards without such
    pictures. Raises ManifestError."""
    names = [manifest_name(*each) for each in sorted(columns_done(store, alias).items())]
    with ThreadPoolExecutor(_READERS if store.remote else 1) as readers:
        counts = [each.pictures_left_out for each in readers.map(partial(read_columns_manifest, store, alias), names)]
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def check_columns(store: Store, aliases: Sequence[str], manifest: ShardManifest) -> Iterator[str]:
    """Problems with the columns that were added to a shard, and the remedies. Missing columns are not a problem."""
    for alias in aliases:
        try:
            record = read_columns_manifest(store, alias, manifest.name)
        except FileNotFoundError:
            continue
        except ManifestError as error:
            yield str(error)
            continue
        if problem := _problem_with(store, record, manifest):
            where = f"columns/{alias}/manifests/{manifest.name}"
            yield f"{problem}; move {where} elsewhere and run embed --add-model again"


def _problem_with(store: Store, record: ColumnsManifest, manifest: ShardManifest) -> str | None:
    path = record.file.path
    if record.pairs_blake2b != manifest.files["pairs"].blake2b:
        return f"{path} belongs to another pairs file"
    if not store.exists(path):
        return f"{path} is missing"
    if store.checksum(path)[0] != record.file.blake2b:
        return f"{path} has changed since it was committed: its checksum differs"
    if not _row_ids(store, path).equals(_row_ids(store, manifest.files["pairs"].path)):
        return f"the rows of {path} are not those of the pairs file"
    return None


def _row_ids(store: Store, path: str) -> pa.ChunkedArray:
    return read_table(store, path, ["row_id"])["row_id"]


class PairsReader:
    """Reads committed pairs with their pictures, for another model. Thread-safe."""

    def __init__(self, store: Store, mapping: ColumnMapping, job: BuildJob) -> None:
        self._store = store
        self._mapping = mapping
        self._reader = ShardReader(store, mapping)
        self._loader = Loader(job, store.files)

    @property
    def checksum(self) -> tuple[str, ...]:
        """The column of checksums that `pictures` verifies, if the dataset has it."""
        return (CHECKSUM.name,) if self._mapping.has_checksums else ()

    def close(self) -> None:
        """Close files and stop threads."""
        self._reader.close()
        self._loader.close()

    def read(self, shard: Shard, manifest: ShardManifest) -> pa.Table:
        """The rows of the pairs file, in its order, for the encode stage. A picture is null if it is missing from a
        corpus or has changed there. Raises DamagedFileError if one in the dataset's own tar has changed."""
        pairs = read_table(self._store, manifest.files["pairs"].path, [*_READ, *STORED.names, *self.checksum])
        pairs = pairs.replace_schema_metadata(None)
        pictures = self.pictures(shard, manifest, pairs)
        if "images" in manifest.files:
            for picture, name, row_id in zip(pictures, *(pairs[n].to_pylist() for n in _NAMED), strict=True):
                if picture is None and name is not None:
                    raise DamagedFileError(
                        f"{self._store.path(name)} is damaged: the picture of row {row_id}; "
                        f"run `pairmill verify {self._store.root}`"
                    )
        table = pairs.append_column("image", binary_column(pictures))
        return table.append_column(IS_PAIR_COLUMN, pa.repeat(True, pairs.num_rows))

    def pictures(self, shard: Shard, manifest: ShardManifest, rows: pa.Table) -> list[bytes | None]:
        """The picture of each given row of a pairs file; None if it has none, or it is missing or has changed."""
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


def write_columns(store: Store, batch: ShardBatch, manifest: ShardManifest, job_fingerprint: str) -> None:
    """Commit one model's columns of a shard. If another worker was faster, its files, which are identical, stay."""
    (contract,) = batch.info.contracts
    alias = contract.alias
    footer = {"schema_version": SCHEMA_VERSION, "shard": manifest.shard, "models": [asdict(contract)]}
    columns = batch.table.select(["row_id", *score_column_names(alias)]).replace_schema_metadata(
        {"pairmill": json.dumps(footer, sort_keys=True)}
    )
    stem = manifest_name(manifest.shard, manifest.generation).removesuffix(".json")
    path = f"columns/{alias}/{stem}.parquet"
    with store.new_file() as file:
        write_table(columns, file)
        digest, num_bytes = file_checksum(file)
        if not store.create_from(path, file) and store.checksum(path)[0] != digest:
            path = f"columns/{alias}/{stem}.{uuid4().hex}.parquet"  # the shard has been rebuilt since
            store.create_from(path, file)
    record = ColumnsManifest(
        shard=manifest.shard,
        generation=manifest.generation,
        pairs_blake2b=manifest.files["pairs"].blake2b,
        rows=columns.num_rows,
        file=DataFile(path=path, num_bytes=num_bytes, blake2b=digest),
        job_fingerprint=job_fingerprint,
        pictures_left_out=_left_out(batch.table, alias),
    )
    store.create(f"columns/{alias}/manifests/{record.name}", record.model_dump_json(indent=1).encode())


def _left_out(table: pa.Table, alias: str) -> int:
    """Number of pairs that have a picture, but no embedding of it."""
    lacking = table[f"image_embedding_{alias}"].is_null()
    return pc.sum(pc.and_(table["image_tar"].is_valid(), lacking)).as_py() or 0
