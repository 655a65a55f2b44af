"""Writes and checks the files in `columns/NAME/`: one Parquet file and one manifest per shard."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

import pyarrow as pa

from pairmill.pipeline.columns.added_columns import ColumnSet, columns_done
from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_columns_manifest, record_bytes
from pairmill.pipeline.dataset.parquet import null_counts, read_table, write_table
from pairmill.schemas.manifest import SCHEMA_VERSION, ColumnsManifest, DataFile, ShardManifest, manifest_name


def write_columns(
    store: Store,
    name: str,
    columns: pa.Table,
    manifest: ShardManifest,
    footer: Mapping[str, object],
    job_fingerprint: str,
    pictures_left_out: int = 0,
) -> None:
    """Commit the columns that a model or a score adds to a shard. If another worker was faster, its files are kept;
    they are identical.

    `columns`: `row_id`, then the added columns, in the row order of the pairs file. `footer`: how the columns were
    made.
    """
    about = {"schema_version": SCHEMA_VERSION, "shard": manifest.shard, **footer}
    columns = columns.replace_schema_metadata({"pairmill": json.dumps(about, sort_keys=True)})
    stem = manifest_name(manifest.shard, manifest.generation).removesuffix(".json")
    path = f"columns/{name}/{stem}.parquet"
    with store.new_file() as file:
        write_table(columns, file)
        digest, num_bytes = file_checksum(file)
        if not store.create_from(path, file) and store.checksum(path)[0] != digest:
            path = f"columns/{name}/{stem}.{uuid4().hex}.parquet"  # the shard has been rebuilt since
            store.create_from(path, file)
    record = ColumnsManifest(
        shard=manifest.shard,
        generation=manifest.generation,
        pairs_blake2b=manifest.files["pairs"].blake2b,
        rows=columns.num_rows,
        file=DataFile(path=path, num_bytes=num_bytes, blake2b=digest),
        job_fingerprint=job_fingerprint,
        pictures_left_out=pictures_left_out,
    )
    store.create(f"columns/{name}/manifests/{record.name}", record_bytes(record))


def count_nulls(store: Store, name: str, shards: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Column of a model or a score -> number of rows without a value in these shards (shard, generation). Omits columns
    without such rows. Raises ManifestError or DamagedFileError."""
    counts = Counter[str]()
    for shard in shards:
        record = read_columns_manifest(store, name, manifest_name(*shard))
        counts.update(null_counts(store, record.file.path))
    return {column: count for column, count in counts.items() if count}


@dataclass(frozen=True)
class AddedFiles:
    """The files of one model or score, for checks of many shards: they are listed only once."""

    store: Store
    name: str
    command: str
    """The command that adds the columns to the shards that lack them."""
    names: frozenset[str]
    """Names of the files in the folder."""

    @classmethod
    def of(cls, added: ColumnSet) -> "AddedFiles":
        """List the files."""
        return cls(added.store, added.name, added.command, frozenset(added.store.list(f"columns/{added.name}")))

    def problem(self, manifest: ShardManifest) -> str | None:
        """The problem with the columns of a shard, with the remedy. Missing columns are not a problem, unless their
        file is there."""
        where = f"columns/{self.name}/manifests/{manifest.name}"
        try:
            record = read_columns_manifest(self.store, self.name, manifest.name)
        except FileNotFoundError:
            if (file := f"{manifest.name.removesuffix('json')}parquet") not in self.names:
                return None
            file = f"columns/{self.name}/{file}"
            return f"{file} has no manifest; unless a command is adding it now, run: {self.command}"
        except DamagedManifestError:
            problem: str | None = f"{where} is damaged or not pairmill's"
        else:
            problem = _problem_with(self.store, record, manifest)
        return f"{problem}; move {where} elsewhere and run: {self.command}" if problem else None


def recorded_fingerprint(store: Store, name: str) -> str | None:
    """The fingerprint of the model or score that made the columns in a folder, whose card may be lost. None if there
    are no columns. Raises ManifestError."""
    for shard in columns_done(store, name).items():
        return read_columns_manifest(store, name, manifest_name(*shard)).job_fingerprint
    return None


def _problem_with(store: Store, record: ColumnsManifest, manifest: ShardManifest) -> str | None:
    path = record.file.path
    if record.pairs_blake2b != manifest.files["pairs"].blake2b:
        return f"{path} belongs to another pairs file"
    if not store.exists(path):
        return f"{path} is missing"
    if store.checksum(path)[0] != record.file.blake2b:
        return f"{path} has changed since it was committed: its checksum differs"
    if not _row_ids(store, path).equals(_row_ids(store, manifest.files["pairs"].path)):
        return f"{path} does not have the same rows as the pairs file"
    return None


def _row_ids(store: Store, path: str) -> pa.ChunkedArray:
    return read_table(store, path, ["row_id"])["row_id"]
