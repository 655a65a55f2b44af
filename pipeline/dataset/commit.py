"""Commits shards: writes the data files of a shard, and its manifest last. No other module does this.

The data files are in `images/`, `pairs/` and `rejects/`. Manifests are create-only, so if two workers commit the same
shard, one of them wins, and a shard exists if and only if its manifest does. Data files of a committed shard that are
not in its manifest are garbage and can be deleted.
"""

import json
import logging
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifest
from pairmill.pipeline.dataset.parquet import write_table
from pairmill.pipeline.dataset.previous_generation import PreviousGeneration, sort_by_row_id
from pairmill.pipeline.dataset.shard_duplicates import refuse_duplicates, refuse_duplicates_in_generation
from pairmill.pipeline.dataset.webdataset_tar import write_tar
from pairmill.schemas.batch import ScoreContract, ShardBatch
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.manifest import (
    SCHEMA_VERSION,
    CustomRuleCount,
    DataFile,
    Shard,
    ShardManifest,
    manifest_name,
    shard_name,
)
from pairmill.schemas.pairs import CHECKSUM, KEPT_STATUS, STORED, pairs_schema, rejects_schema, score_columns
from pairmill.schemas.status import Status, Step

NO_COLUMNS = pa.schema([])

_DELETED = "a purge deleted files of this shard while it was being committed; run this again"

log = logging.getLogger(__name__)


class FilesDeletedError(PairmillError, RuntimeError):
    """A purge deleted files of a shard that was being committed. The shard is not committed."""

    kind = FailureKind.SHARD


class AccountingError(PairmillError, RuntimeError):
    """Rows are missing or duplicated, which should never happen. The shard is not committed."""

    kind = FailureKind.SHARD


@dataclass(frozen=True)
class ShardWriter:
    """Commits shards of one job. `aliases`: the aliases of the job's models. The similarity of the first model becomes
    the column `similarity`."""

    store: Store
    extra: pa.Schema
    aliases: Sequence[str]
    images: ImagesConfig | None
    """Which pictures to store and how. None for a corpus, whose pictures stay in the input."""
    job_fingerprint: str
    versions: dict[str, str]
    rule_steps: Mapping[str, Step] = field(default_factory=dict)
    """The user's custom rules and the step in which each runs."""
    carried: Sequence[str] = ()
    """Columns of `extra` to write to the tars' .json files."""
    scores: pa.Schema = NO_COLUMNS
    """Columns of the picture scores."""
    has_checksums: bool = True
    """Whether the pairs have the column CHECKSUM."""

    def commit(self, batch: ShardBatch, previous: PreviousGeneration | None = None) -> ShardManifest:
        """Write a finished batch. Returns the valid manifest: this worker's, or a faster worker's.

        The score contracts go into every Parquet footer, as JSON under the key `pairmill`. With `previous`, the batch
        has only some of the shard's rows, and the whole shard is written as its next generation.
        """
        info, table, shard = batch.info, batch.table, batch.info.shard
        generation = 0 if previous is None else previous.manifest.generation + 1
        commit = _Commit(self, shard, generation, uuid4().hex, info.contracts)
        rows_in = table.num_rows if previous is None else previous.manifest.rows_in
        earlier = previous and previous.without(table["row_id"])
        withdrawn, table = _without_withdrawn(table)
        withdrawn += 0 if previous is None else previous.manifest.withdrawn
        if earlier is None:
            table = refuse_duplicates(table)
        else:
            table, earlier = refuse_duplicates_in_generation(table, earlier)
        pairs, rejects, files = commit.write_data(table, earlier)
        if pairs.num_rows + rejects.num_rows + withdrawn != rows_in:
            raise AccountingError(
                f"{rows_in} rows in, {pairs.num_rows} + {rejects.num_rows} out, {withdrawn} withdrawn"
            )
        statuses = Counter(pairs["status"].to_pylist() + rejects["status"].to_pylist())
        statuses[Status.WITHDRAWN.value] = withdrawn
        manifest = ShardManifest(
            shard=shard.shard,
            generation=generation,
            attempt=commit.attempt,
            uri=shard.uri,
            first_row=shard.first_row,
            num_rows=shard.num_rows,
            rows_in=rows_in,
            pairs=pairs.num_rows,
            rejects=rejects.num_rows,
            kept=pc.sum(pairs["kept"]).as_py() or 0,
            statuses={status: rows for status, rows in sorted(statuses.items()) if rows},
            job_fingerprint=self.job_fingerprint,
            files=files,
            seconds=info.seconds,
            bytes_fetched=0
            if self.images is None
            else _bytes_fetched(table) + (previous.manifest.bytes_fetched if previous else 0),
            versions=self.versions,
            custom_rules=self._custom_rules(pairs, rejects),
        )
        return publish_manifest(self.store, manifest)

    def _custom_rules(self, *tables: pa.Table) -> dict[str, CustomRuleCount]:
        """Number of rows dropped by each custom rule. The `status_detail` of a row starts with the rule's name."""
        counts: Counter[str] = Counter()
        for table in tables:
            details = table["status_detail"].filter(pc.equal(table["status"], Status.CUSTOM_RULE.value)).to_pylist()
            names = Counter((detail or "").partition(": ")[0] for detail in details)
            counts.update({name: names[name] for name in self.rule_steps if names[name]})
        return {name: CustomRuleCount(step=self.rule_steps[name], rows=count) for name, count in counts.items()}


def publish_manifest(store: Store, manifest: ShardManifest) -> ShardManifest:
    """Create the manifest, the last file of a commit, unless it already exists. Returns the manifest that is valid.

    A purge deletes files that no manifest names, even if a build is running. So the data files are looked for once the
    manifest names them. Raises FilesDeletedError.
    """
    name = f"manifests/{manifest.name}"
    if not store.create(name, manifest.model_dump_json(indent=1).encode()):
        existing = _existing(store, manifest)
        if existing.attempt != manifest.attempt:  # otherwise, this attempt wrote it, but the reply was lost
            _delete_unnamed(store, manifest, existing)
            return existing
    try:
        is_incomplete = _is_incomplete(store, manifest)
    except Exception as error:  # whatever fails, the shard is committed
        log.warning("shard %s: could not look for its files: %s", shard_name(manifest.shard), error)
        return manifest
    if is_incomplete:
        store.delete(name)
        raise FilesDeletedError(_DELETED)
    return manifest


def _existing(store: Store, manifest: ShardManifest) -> ShardManifest:
    try:
        return read_manifest(store, manifest.name)
    except FileNotFoundError:
        raise FilesDeletedError(_DELETED) from None


def _delete_unnamed(store: Store, manifest: ShardManifest, existing: ShardManifest) -> None:
    """Delete the data files that only this attempt's manifest names."""
    named = {file.path for file in existing.files.values()}
    for file in manifest.files.values():
        if file.path not in named:
            store.delete(file.path)
    log.info("shard %s was committed by another worker", shard_name(manifest.shard))


def retract_incomplete(store: Store, manifest: ShardManifest) -> None:
    """Delete a new manifest if data files are missing, so that the shard is not committed."""
    if _is_incomplete(store, manifest):
        store.delete(f"manifests/{manifest.name}")


def _is_incomplete(store: Store, manifest: ShardManifest) -> bool:
    """Whether data files of the manifest's own generation are missing. Files of an earlier generation belong to a
    commit that is already valid."""
    stem = manifest.name.removesuffix("json")
    paths = [file.path for file in manifest.files.values() if file.path.rpartition("/")[2].startswith(stem)]
    return not all(map(store.exists, paths))


def _without_withdrawn(table: pa.Table) -> tuple[int, pa.Table]:
    """(number of withdrawn rows, the other rows). Nothing of a withdrawn row may be stored."""
    is_withdrawn = pc.equal(table["status"], Status.WITHDRAWN.value)
    rows = pc.sum(is_withdrawn).as_py() or 0
    return rows, table.filter(pc.invert(is_withdrawn)) if rows else table


def _bytes_fetched(table: pa.Table) -> int:
    """The number of fetched bytes, summed over distinct URLs: a URL with several captions is fetched once."""
    per_url = table.select(["url", "original_bytes"]).group_by("url").aggregate([("original_bytes", "max")])
    return int(pc.sum(per_url["original_bytes_max"]).as_py() or 0)


@dataclass(frozen=True)
class _Commit:
    """One attempt to commit one generation of one shard."""

    writer: ShardWriter
    shard: Shard
    generation: int
    attempt: str
    contracts: Sequence[ScoreContract]

    def write_data(
        self, table: pa.Table, previous: PreviousGeneration | None
    ) -> tuple[pa.Table, pa.Table, dict[Any, DataFile]]:
        """Write the data files. Returns (pairs, rejects, their files). `previous`: the rows of the shard that are not
        in the table."""
        bare = table.drop_columns(["image"])  # so that filters never copy the pictures
        pairs = self._pairs_table(bare.filter(table["is_pair"]))
        rejects = bare.filter(pc.invert(table["is_pair"])).select(self._rejects_schema.names)
        if previous is not None:
            rejects = sort_by_row_id(pa.concat_tables([rejects, _like(rejects, previous.rejects)]))
            if not pairs.num_rows:  # no new pairs: pairs and pictures do not change
                return (
                    previous.pairs,
                    rejects,
                    {**previous.manifest.files, "rejects": self._parquet("rejects", rejects)},
                )
            pairs = sort_by_row_id(pa.concat_tables([pairs, _like(pairs, previous.pairs)]))
        files: dict[Any, DataFile]
        stored = previous is not None and "images" in previous.manifest.files
        pictures = previous.pictures(self.writer.has_checksums) if previous is not None and stored else {}
        files, pairs = self._write_pictures(pairs, table, pictures)
        files["pairs"] = self._parquet("pairs", pairs)
        files["rejects"] = self._parquet("rejects", rejects)
        return pairs, rejects, files

    def _write_pictures(
        self, pairs: pa.Table, table: pa.Table, previous: Mapping[str, bytes]
    ) -> tuple[dict[Any, DataFile], pa.Table]:
        """Write the tar if there are pictures to store. Returns its file, and the pairs with image references."""
        if self.writer.images is None:  # a corpus: the table already has the references
            return {}, self._with_columns(pairs, {CHECKSUM.name: self._checksums(table)})
        stored = pairs.filter(self._is_stored(pairs))
        if not stored.num_rows:
            return {}, pairs
        fresh = pc.index_in(stored["row_id"], value_set=table["row_id"].combine_chunks()).to_pylist()
        pictures = [
            pa.py_buffer(previous[row_id]) if row is None else table["image"][row].as_buffer()
            for row_id, row in zip(stored["row_id"].to_pylist(), fresh, strict=True)
        ]
        with self.writer.store.new_file() as file:
            offsets, lengths = write_tar(file, stored, pictures, self.writer.images.format, self.writer.carried)
            tar = self._publish("images", "tar", file)
        columns = [[tar.path] * stored.num_rows, offsets, lengths, [zlib.crc32(picture) for picture in pictures]]
        image_refs = pa.table(columns, schema=pa.schema([*STORED, CHECKSUM]))
        image_refs = image_refs.take(pc.index_in(pairs["row_id"], value_set=stored["row_id"].combine_chunks()))
        return {"images": tar}, self._with_columns(pairs, dict(zip(image_refs.column_names, image_refs, strict=True)))

    def _with_columns(self, pairs: pa.Table, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
        """The pairs with new values in these columns. Datasets from before 0.2 have no CHECKSUM; a column of this name
        there is the user's own."""
        for name, values in columns.items():
            if name == CHECKSUM.name and not self.writer.has_checksums:
                continue
            index = pairs.schema.get_field_index(name)
            pairs = pairs.set_column(index, pairs.schema.field(index), values)
        return pairs

    def _checksums(self, table: pa.Table) -> pa.Array:
        """The CHECKSUM of each pair of a corpus. The pictures are in the in-flight table."""
        images = table["image"].filter(table["is_pair"])
        return pa.array([zlib.crc32(each.as_buffer()) if each.is_valid else None for each in images], CHECKSUM.type)

    def _is_stored(self, pairs: pa.Table) -> pa.ChunkedArray | pa.Array:
        """For each pair, whether its picture goes into the tar."""
        store = self.writer.images.store if self.writer.images else "none"
        if store == "kept":
            return pc.equal(pairs["status"], KEPT_STATUS)
        return pa.repeat(store == "pairs", pairs.num_rows)

    @cached_property
    def _rejects_schema(self) -> pa.Schema:
        return rejects_schema(self.writer.extra)

    def _pairs_table(self, pairs: pa.Table) -> pa.Table:
        """The columns of `pairs/*.parquet`. Image references are still null, except for a corpus."""
        aliases = self.writer.aliases
        scores = [
            score_columns(alias, pairs.schema.field(f"image_embedding_{alias}").type.list_size) for alias in aliases
        ]
        schema = pairs_schema(self.writer.extra, [*scores, self.writer.scores], self.writer.has_checksums)
        added = [field for field in (*STORED, CHECKSUM) if field.name not in pairs.column_names]
        columns = {field.name: pa.nulls(pairs.num_rows, field.type) for field in added}
        columns["kept"] = pc.equal(pairs["status"], KEPT_STATUS)
        none = pa.nulls(pairs.num_rows, pa.float32())
        columns["similarity"] = pairs[f"similarity_{aliases[0]}"] if aliases else none
        arrays = [columns[name] if name in columns else pairs[name] for name in schema.names]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _parquet(self, folder: str, table: pa.Table) -> DataFile:
        footer = {
            "schema_version": SCHEMA_VERSION,
            "shard": self.shard.shard,
            "job_fingerprint": self.writer.job_fingerprint,
            "models": [asdict(contract) for contract in self.contracts],
            "versions": self.writer.versions,
        }
        table = table.replace_schema_metadata({"pairmill": json.dumps(footer, sort_keys=True)})
        with self.writer.store.new_file() as file:
            write_table(table, file)
            return self._publish(folder, "parquet", file)

    def _publish(self, folder: str, suffix: str, file: Any) -> DataFile:
        """Publish a file under its plain name, or with the attempt in the name if another attempt has taken the plain
        name."""
        digest, num_bytes = file_checksum(file)
        stem = manifest_name(self.shard.shard, self.generation).removesuffix(".json")
        name = f"{folder}/{stem}.{suffix}"
        if not self.writer.store.create_from(name, file):
            name = f"{folder}/{stem}.{self.attempt}.{suffix}"
            self.writer.store.create_from(name, file)  # if taken, by this attempt: the reply was lost
        return DataFile(path=name, num_bytes=num_bytes, blake2b=digest)


def _like(table: pa.Table, earlier: pa.Table) -> pa.Table:
    """The rows of an earlier version's table with the schema of this one, which can differ in what may be null."""
    return earlier.select(table.column_names).cast(table.schema)
