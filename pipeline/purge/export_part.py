"""Removes withdrawn rows from one part of an export. All files of a part have the same rows in the same order.

The rows to remove are recorded first, and the manifest of the part is written last. If a purge is killed in between,
the next one finds its record and finishes that removal before anything else.
"""

import io
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import StorageError, Store
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_record, record_bytes
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.keys import digest
from pairmill.pipeline.purge.matching import Mask
from pairmill.pipeline.purge.tar_samples import copy_samples, keys_of, uid_of_key
from pairmill.schemas.export import ExportedPart, PartRemoval
from pairmill.schemas.manifest import DataFile

REMEDY = "make the export again in another folder"


class DamagedPartError(Exception):
    """A file of an export is missing, damaged, or not the file that was exported."""


@contextmanager
def reading_export() -> Iterator[None]:
    """Turn what readers raise for a missing or damaged file into DamagedPartError. The machine's own errors pass
    unchanged."""
    try:
        yield
    except (DamagedManifestError, FileNotFoundError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DamagedPartError(str(error)) from error
    except (EOFError, KeyError, ValueError) as error:  # raised by numpy, Arrow and Pydantic
        raise DamagedPartError(str(error)) from error
    except OSError as error:  # Arrow also raises it for damage, but without the errno of the machine's own errors
        if isinstance(error, StorageError) or error.errno is not None:
            raise
        raise DamagedPartError(str(error)) from error


@dataclass(frozen=True)
class PartFiles:
    """A part of an export, identified by the name of its manifest."""

    output: Store
    records: str
    """The folder of the export's records."""
    name: str
    is_interrupted: bool
    """Whether a killed purge left behind the record of a removal."""

    @classmethod
    def of(cls, output: Store, records: str) -> list["PartFiles"]:
        """All parts of an export."""
        interrupted = output.list(f"{records}/removals")
        names = [name for name in output.list(f"{records}/manifests") if name.endswith(".json")]
        return [cls(output, records, name, name in interrupted) for name in names]

    def recorded(self) -> ExportedPart:
        """The part according to its manifest. Raises DamagedPartError."""
        with reading_export():
            return read_record(self.output, self._manifest, ExportedPart, REMEDY)

    def purge(self, uids: DigestSet) -> tuple[int, ExportedPart]:
        """Remove withdrawn rows. Returns the number of rows before the purge, and the part as it is now. Raises
        DamagedPartError if a file cannot be read."""
        before = part = self.recorded()
        if self.is_interrupted:
            with reading_export():
                removal = read_record(self.output, self._removal, PartRemoval, REMEDY)
            if removal.rows == part.rows:  # otherwise the purge was killed right after the removal
                part = self._remove(part, removal)
            self.output.delete(self._removal)
        self._check_sizes(part)
        if gone := self._withdrawn(part, uids):
            removal = PartRemoval(rows=part.rows, gone=gone)
            self.output.replace(self._removal, record_bytes(removal))
            part = self._remove(part, removal)
            self.output.delete(self._removal)
        return before.rows, part

    @property
    def _manifest(self) -> str:
        return f"{self.records}/manifests/{self.name}"

    @property
    def _removal(self) -> str:
        return f"{self.records}/removals/{self.name}"

    def _check_sizes(self, part: ExportedPart) -> None:
        """Raise DamagedPartError unless all files have their recorded sizes."""
        for name, file in part.files.items():
            with reading_export():
                num_bytes = self.output.num_bytes(name)
            if num_bytes != file.num_bytes:
                raise DamagedPartError(f"{self.output.path(name)} has {num_bytes:,} bytes, not {file.num_bytes:,}")

    def _withdrawn(self, part: ExportedPart, uids: DigestSet) -> list[int]:
        """The numbers of the withdrawn rows, according to the file with the uids."""
        if not part.files:
            return []
        with reading_export():
            (name,) = (name for name in part.files if name.endswith((".tar", ".parquet")))
            found = _uids_of(self.output, name)
        if len(found) != part.rows:
            raise DamagedPartError(f"{self.output.path(name)} has {len(found):,} rows, not {part.rows:,}")
        gone: list[int] = np.flatnonzero(uids.contains([digest("uid", uid.encode()) for uid in found])).tolist()
        return gone

    def _remove(self, part: ExportedPart, removal: PartRemoval) -> ExportedPart:
        keep = np.ones(removal.rows, np.bool_)
        keep[removal.gone] = False
        files = self._files(part, keep)
        new = part.model_copy(update={"rows": int(np.count_nonzero(keep)), "files": files})
        self.output.replace(self._manifest, record_bytes(new))
        return new

    def _files(self, part: ExportedPart, keep: Mask) -> dict[str, DataFile]:
        """Rewrite the files of a part with only the rows to keep.

        If there are none, a tar stays, without samples, because trainers count on every tar of a series. All other
        files are deleted: embedding-reader skips an array without rows, and gives its metadata to the next array.
        """
        names = set(part.files)
        if not keep.any():
            names = {name for name in names if name.endswith(".tar")}
            for name in part.files.keys() - names:
                self.output.delete(name)
        return {name: self._without(name, keep) for name in part.files if name in names}

    def _without(self, name: str, keep: Mask) -> DataFile:
        """Rewrite a file with only the rows to keep, unless a killed purge already did."""
        with reading_export(), self.output.open(name) as source:
            rows = _num_rows(source, name)
        if rows == np.count_nonzero(keep):
            digest_, num_bytes = self.output.checksum(name)
            return DataFile(path=name, num_bytes=num_bytes, blake2b=digest_)
        if rows != len(keep):
            raise DamagedPartError(f"{self.output.path(name)} has {rows:,} rows, not {len(keep):,}")
        with self.output.new_file() as target:
            with reading_export(), self.output.open(name) as source:
                _copy(source, target, name, keep)
            digest_, num_bytes = file_checksum(target)
            self.output.replace_from(name, target)
        return DataFile(path=name, num_bytes=num_bytes, blake2b=digest_)


def _uids_of(output: Store, name: str) -> list[str]:
    if name.endswith(".parquet"):
        uids: list[str] = read_table(output, name, ["uid"])["uid"].to_pylist()
        return uids
    with output.open(name) as file:
        return [uid_of_key(key) for key in keys_of(file)]


def _num_rows(file: IO[bytes], name: str) -> int:
    if name.endswith(".tar"):
        return sum(1 for _ in keys_of(file))
    if name.endswith(".parquet"):
        return int(pq.read_metadata(file).num_rows)
    loaded = np.load(file, allow_pickle=False)
    return len(loaded[loaded.files[0]] if name.endswith(".npz") else loaded)


def _copy(source: IO[bytes], target: IO[bytes], name: str, keep: Mask) -> None:
    """Copy the rows to keep."""
    if name.endswith(".tar"):
        uids = [uid_of_key(key) for key in keys_of(source)]
        source.seek(0)
        copy_samples(source, target, {uid for uid, is_kept in zip(uids, keep.tolist(), strict=True) if is_kept})
    elif name.endswith(".parquet"):
        _copy_parquet(source, target, keep)
    else:
        loaded = np.load(io.BytesIO(source.read()), allow_pickle=False)
        if name.endswith(".npz"):
            np.savez(target, **{each: loaded[each][keep] for each in loaded.files})
        else:
            np.save(target, loaded[keep])


def _copy_parquet(source: IO[bytes], target: IO[bytes], keep: Mask) -> None:
    start = 0
    with (
        pq.ParquetFile(source) as parquet,
        pq.ParquetWriter(target, parquet.schema_arrow, compression="zstd", write_page_checksum=True) as writer,
    ):
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)
            if (left := table.filter(pa.array(keep[start : start + table.num_rows]))).num_rows:
                writer.write_table(left)  # readers refuse row groups without rows (see `write_rows`)
            start += table.num_rows
