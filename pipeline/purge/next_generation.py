"""Writes the next generation of a shard without its withdrawn rows. The manifest is written last, and only if
it does not exist yet."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import publish_manifest
from pairmill.pipeline.dataset.manifests import read_manifest
from pairmill.pipeline.dataset.parquet import read_table, write_table
from pairmill.pipeline.purge.ledger import write_part
from pairmill.pipeline.purge.matching import Mask, Matcher
from pairmill.pipeline.purge.side_columns import SideColumns
from pairmill.pipeline.purge.tar_samples import copy_samples
from pairmill.pipeline.purge.witness import witnesses
from pairmill.schemas.manifest import CustomRuleCount, DataFile, ShardManifest, manifest_name
from pairmill.schemas.status import Status

_WRITERS = 4
"""Number of shards that a task rewrites at the same time, all of them in memory."""


def rewrite_shards(store: Store, matcher: Matcher, shards: Sequence[tuple[int, int]]) -> int:
    """Run `rewrite_shard` for each (shard, generation), several at a time, because most of the time is spent waiting
    for the disk. Returns the number of rows that were removed."""
    with ThreadPoolExecutor(_WRITERS) as writers:
        return sum(writers.map(lambda each: rewrite_shard(store, matcher, *each), shards))


def rewrite_shard(store: Store, matcher: Matcher, shard: int, generation: int) -> int:
    """Write the next generation of a shard and of its added columns, and record the rows that are removed. Returns how
    many were removed; 0 if an earlier call already committed the generation.

    Deletes files of the next generation that an interrupted call left behind, to free their names.
    """
    if store.exists(f"manifests/{manifest_name(shard, generation + 1)}"):
        return 0
    old = read_manifest(store, manifest_name(shard, generation))
    writer = _Writer(store, old, uuid4().hex)
    writer.remove_leftovers()
    pairs = read_table(store, old.files["pairs"].path)
    rejects = read_table(store, old.files["rejects"].path) if "rejects" in old.files else None
    side = SideColumns.of(store, old)
    gone = matcher.mask(side.beside(pairs, matcher.columns))
    rejected = np.zeros(0, np.bool_) if rejects is None else matcher.mask(rejects)
    rows = witnesses(store, pairs.filter(pa.array(gone)), side.read(gone), side.written_captions)
    if rejects is not None:
        rows = pa.concat_tables([rows, witnesses(store, rejects.filter(pa.array(rejected)))])
    write_part(store, shard, generation, rows)
    new = writer.write(pairs, rejects, gone, rejected)
    side.write(new, pairs, gone)
    publish_manifest(store, new)
    return int(rows.num_rows)


class _Writer:
    """Writes the data files of the generation after `old`."""

    def __init__(self, store: Store, old: ShardManifest, attempt: str) -> None:
        self._store, self._old, self._attempt = store, old, attempt
        self._stem = manifest_name(old.shard, old.generation + 1).removesuffix(".json")

    def remove_leftovers(self) -> None:
        """Delete data files of the new generation, which is not committed yet."""
        for name in (f"pairs/{self._stem}.parquet", f"rejects/{self._stem}.parquet", f"images/{self._stem}.tar"):
            self._store.delete(name)

    def write(self, pairs: pa.Table, rejects: pa.Table | None, gone: Mask, rejected: Mask) -> ShardManifest:
        """Write the data files that change. Returns the manifest without writing it."""
        files: dict[str, DataFile] = {str(name): file for name, file in self._old.files.items()}
        if gone.any():
            pairs = self._with_pictures(files, pairs.filter(pa.array(~gone)))
            files["pairs"] = self._parquet("pairs", pairs)
        if rejects is not None and rejected.any():
            rejects = rejects.filter(pa.array(~rejected))
            files["rejects"] = self._parquet("rejects", rejects)
        tables = [pairs] if rejects is None else [pairs, rejects]
        statuses = Counter(status for table in tables for status in table["status"].to_pylist())
        statuses[Status.WITHDRAWN.value] = self._old.rows_in - sum(table.num_rows for table in tables)
        changes = {
            "generation": self._old.generation + 1,
            "attempt": self._attempt,
            "pairs": pairs.num_rows,
            "rejects": 0 if rejects is None else rejects.num_rows,
            "kept": pc.sum(pairs["kept"]).as_py() or 0,
            "statuses": dict(sorted(statuses.items())),
            "files": files,
            "custom_rules": self._custom_rules(tables),
        }
        return self._old.model_copy(update=changes)

    def _custom_rules(self, tables: list[pa.Table]) -> dict[str, CustomRuleCount]:
        """The counts of custom rules that still have rows. The `status_detail` of a row starts with the rule's name."""
        counts: Counter[str] = Counter()
        for table in tables:
            details = table.filter(pc.equal(table["status"], Status.CUSTOM_RULE.value))["status_detail"].to_pylist()
            counts.update((detail or "").partition(": ")[0] for detail in details)
        before = self._old.custom_rules
        return {name: CustomRuleCount(step=before[name].step, rows=counts[name]) for name in before if counts[name]}

    def _with_pictures(self, files: dict[str, DataFile], pairs: pa.Table) -> pa.Table:
        """Copy only the samples of these pairs to a new tar. Returns the pairs with their new image references."""
        if (old := files.pop("images", None)) is None:
            return pairs
        is_stored = pairs["image_tar"].is_valid()
        uids = frozenset(pairs["uid"].filter(is_stored).to_pylist())
        if not uids:
            return pairs
        with self._store.open(old.path) as source, self._store.new_file() as target:
            offsets = copy_samples(source, target, uids)
            files["images"] = self._publish("images", "tar", target)
        tar, stored = files["images"].path, is_stored.to_pylist()
        places = [offsets[uid] if has else None for uid, has in zip(pairs["uid"].to_pylist(), stored, strict=True)]
        for name, values in (("image_tar", [tar if has else None for has in stored]), ("image_offset", places)):
            index = pairs.schema.get_field_index(name)
            field = pairs.schema.field(index)
            pairs = pairs.set_column(index, field, pa.array(values, field.type))
        return pairs

    def _parquet(self, folder: str, table: pa.Table) -> DataFile:
        with self._store.new_file() as file:
            write_table(table, file)
            return self._publish(folder, "parquet", file)

    def _publish(self, folder: str, suffix: str, file: IO[bytes]) -> DataFile:
        digest, num_bytes = file_checksum(file)
        name = f"{folder}/{self._stem}.{suffix}"
        # The name can be taken if an earlier upload succeeded but its reply was lost. No manifest refers to that file.
        if not self._store.create_from(name, file):
            name = f"{folder}/{self._stem}.{self._attempt}.{suffix}"
            self._store.create_from(name, file)
        return DataFile(path=name, num_bytes=num_bytes, blake2b=digest)
