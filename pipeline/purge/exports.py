"""Takes withdrawn rows out of exports: every part is filtered by the uids of its own files."""

import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.exports import noted_exports
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_record
from pairmill.pipeline.dataset.output_folder import is_export, records_folder
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.dataset.webdataset_tar import sizes_table
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.keys import digest
from pairmill.pipeline.purge.matching import Mask
from pairmill.pipeline.purge.tar_samples import copy_samples, keys_of, uid_of_key
from pairmill.schemas.export import ExportedPart, ExportRecord
from pairmill.schemas.manifest import DataFile
from pairmill.schemas.s3 import S3Config

_REMEDY = "make the export again in another folder"
_PART_FILE = re.compile(r"(?:metadata_|img_emb_|text_emb_)?\d+\.(?:tar|parquet|npy|npz)")
_UID_FILES = (".tar", ".parquet")
"""Files that tell which rows a part has. They are replaced last, so that an interrupted purge still knows the rows."""


@dataclass(frozen=True)
class ExportPurge:
    """What became of an export."""

    output: str
    outcome: Literal["nothing to withdraw", "rewritten", "not found", "damaged"]
    rows: int = 0
    """Rows that went, or would go."""


def purge_exports(store: Store, uids: DigestSet, also: Sequence[str], dry_run: bool) -> list[ExportPurge]:
    """Purge every export that the dataset knows of, and those in `also` (paths or URLs). With `dry_run`, only count."""
    outputs = dict.fromkeys([*(note.output for note in noted_exports(store)), *also])
    return [_purge_if_there(output, store.files.s3, uids, dry_run) for output in outputs]


def _purge_if_there(path: str, s3: S3Config, uids: DigestSet, dry_run: bool) -> ExportPurge:
    """An export that cannot be reached or read must not keep the rest of a purge from its end."""
    try:
        output = Store(path, s3)
        if not is_export(output):
            return ExportPurge(path, "not found")
    except OSError:
        return ExportPurge(path, "not found")
    try:
        return _purge_export(output, uids, dry_run)
    except DamagedManifestError:
        return ExportPurge(path, "damaged")


def _purge_export(output: Store, uids: DigestSet, dry_run: bool) -> ExportPurge:
    records = records_folder(output)
    record = read_record(output, f"{records}/export.json", ExportRecord, _REMEDY)
    names = [name for name in output.list(f"{records}/manifests") if name.endswith(".json")]
    parts = {name: read_record(output, f"{records}/manifests/{name}", ExportedPart, _REMEDY) for name in names}
    gone = 0
    for name, part in parts.items():
        purge = _PartPurge(output, part, uids)
        if dry_run:
            gone += purge.num_gone
        elif (new := purge.run()) != part:
            gone += part.rows - new.rows
            output.replace(f"{records}/manifests/{name}", new.model_dump_json(indent=1).encode())
            parts[name] = new
    if dry_run:
        return ExportPurge(output.root, "rewritten" if gone else "nothing to withdraw", gone)
    _finish(output, records, record, parts, uids)
    return ExportPurge(output.root, "rewritten" if gone else "nothing to withdraw", gone)


class _PartPurge:
    """One part: its files have the same rows, in the same order."""

    def __init__(self, output: Store, part: ExportedPart, uids: DigestSet) -> None:
        self._output, self._part = output, part
        name = next(name for name in part.files if name.endswith(_UID_FILES))
        found = _uids_of(output, name)
        self._keep: Mask = ~uids.contains([digest("uid", uid.encode()) for uid in found])
        self._kept_uids = frozenset(uid for uid, keep in zip(found, self._keep.tolist(), strict=True) if keep)

    @property
    def num_gone(self) -> int:
        """How many of its rows are withdrawn."""
        return int(np.count_nonzero(~self._keep))

    def run(self) -> ExportedPart:
        """Rewrite the files that hold withdrawn rows. Returns the record of the part as it is now."""
        files = dict(self._part.files)
        for name in sorted(files, key=lambda name: name.endswith(_UID_FILES)):
            if self.num_gone:
                files[name] = self._rewrite(name)
            elif len(self._keep) != self._part.rows:  # an interrupted purge has rewritten it
                blake2b, num_bytes = self._output.checksum(name)
                files[name] = DataFile(path=name, num_bytes=num_bytes, blake2b=blake2b)
        rows = int(np.count_nonzero(self._keep))
        return self._part.model_copy(update={"rows": rows, "files": files})

    def _rewrite(self, name: str) -> DataFile:
        with self._output.open(name) as source, self._output.new_file() as target:
            if name.endswith(".tar"):
                copy_samples(source, target, self._kept_uids)
            elif name.endswith(".parquet"):
                _filter_parquet(source, target, self._keep)
            else:
                _filter_arrays(source, target, self._keep, is_archive=name.endswith(".npz"))
            digest_, num_bytes = file_checksum(target)
            self._output.replace_from(name, target)
        return DataFile(path=name, num_bytes=num_bytes, blake2b=digest_)


def _uids_of(output: Store, name: str) -> list[str]:
    if name.endswith(".parquet"):
        uids: list[str] = read_table(output, name, ["uid"])["uid"].to_pylist()
        return uids
    with output.open(name) as file:
        return [uid_of_key(key) for key in keys_of(file)]


def _filter_parquet(source: IO[bytes], target: IO[bytes], keep: Mask) -> None:
    start = 0
    with (
        pq.ParquetFile(source) as parquet,
        pq.ParquetWriter(target, parquet.schema_arrow, compression="zstd", write_page_checksum=True) as writer,
    ):
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)
            writer.write_table(table.filter(pa.array(keep[start : start + table.num_rows])))
            start += table.num_rows


def _filter_arrays(source: IO[bytes], target: IO[bytes], keep: Mask, is_archive: bool) -> None:
    """Drop rows of arrays, unless an interrupted purge has."""

    def kept(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array[keep] if len(array) == len(keep) else array

    loaded = np.load(io.BytesIO(source.read()), allow_pickle=False)
    if is_archive:
        np.savez(target, **{name: kept(loaded[name]) for name in loaded.files})  # type: ignore[arg-type]
    else:
        np.save(target, kept(loaded))


def _finish(
    output: Store, records: str, record: ExportRecord, parts: Mapping[str, ExportedPart], uids: DigestSet
) -> None:
    """Rewrite the files that describe all parts, and delete files of parts that were never finished."""
    named = {name for part in parts.values() for name in part.files}
    if len(parts) < record.num_files:
        for name in _unfinished(output, named):
            output.delete(name)
    if output.exists("subset.npy"):
        _purge_uid_array(output, uids)
    rows = sum(part.rows for part in parts.values())
    if len(parts) < record.num_files or rows == record.rows:
        return
    if output.exists("sizes.json"):
        output.replace("sizes.json", sizes_table({name: part.rows for part in parts.values() for name in part.files}))
    if output.exists("README.md"):
        text = output.read("README.md").decode()
        output.replace("README.md", text.replace(f"\n{record.rows:,} pair", f"\n{rows:,} pair").encode())
    new = record.model_copy(update={"rows": rows})
    output.replace(f"{records}/export.json", new.model_dump_json(indent=1).encode())
    output.remove_temporary()


def _unfinished(output: Store, named: Collection[str]) -> Iterator[str]:
    """Data files that no part names."""
    for folder in ("", "metadata", "img_emb", "text_emb"):
        for name in output.list(folder):
            path = f"{folder}/{name}".lstrip("/")
            if path not in named and _PART_FILE.fullmatch(name):
                yield path


def _purge_uid_array(output: Store, uids: DigestSet) -> None:
    array = np.load(io.BytesIO(output.read("subset.npy")), allow_pickle=False)
    texts = [f"{high:016x}{low:016x}" for high, low in array.tolist()]
    gone = uids.contains([digest("uid", text.encode()) for text in texts])
    if gone.any():
        data = io.BytesIO()
        np.save(data, array[~gone])
        output.replace("subset.npy", data.getvalue())
