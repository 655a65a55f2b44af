"""Writes one part of an export: first the data files, then their record, which is create-only."""

import logging
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from pairmill.pipeline.columns.caption_choice import CaptionChoice
from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.integrity import is_unchanged
from pairmill.pipeline.dataset.manifests import DamagedManifestError, read_record, record_bytes
from pairmill.pipeline.dataset.purge_watch import PurgeWatch
from pairmill.pipeline.dataset.webdataset_tar import image_ending
from pairmill.pipeline.export.formats import Format, Part, Write, check_scores
from pairmill.pipeline.export.order import GroupSlice
from pairmill.pipeline.export.reader import RowSource
from pairmill.schemas.export import ExportedPart, ExportRecord
from pairmill.schemas.manifest import DataFile

log = logging.getLogger(__name__)

OTHER_OUTPUT = "export to another folder"
"""The remedy for a damaged record of an export."""


@dataclass(frozen=True)
class PartWriter:
    """Writes the parts of one export. Picklable."""

    source: RowSource
    output: Store
    format: Format
    seed: int | None
    columns: tuple[str, ...]
    digits: int
    """Width of a part's number in file names."""
    records: str
    """Folder of the records in the output."""
    choice: CaptionChoice | None = None
    """The captions to write; None: the original captions."""
    copies: bool = False
    """Whether rows are repeated according to their weights."""
    watches: tuple[PurgeWatch, ...] = ()
    """The purges of the datasets that existed when the export began."""

    def write(self, number: int, slices: Sequence[GroupSlice]) -> ExportedPart:
        """Write the files of a part, then their record. Raises FormatError, MissingDataError, and JobError if a purge
        has begun."""
        with (
            closing(self.source.open(self.seed, self.copies)) as reader,
            self.output.new_file() as picture_file,
        ):
            rows = reader.rows(slices, self.read_columns)
            check_scores(rows.table)
            ranges = reader.write_pictures(rows, picture_file) if self.format.needs_pictures else []
            table = rows.table if self.choice is None else self.choice.apply(rows.table)
            keys = rows.keys() if self.copies else None
            part = Part(self._stem(number), table.select(list(self.columns)), picture_file, ranges, keys)
            files = {name: self._write_file(name, write) for name, write in self.format.files(part).items()}
            endings = sorted({image_ending(picture) for picture in part.heads()})
        record = ExportedPart(number=number, rows=rows.num_rows, files=files, image_endings=endings)
        self.output.create(name := manifest_name(self.records, number), record_bytes(record))
        self.withdraw_if_purged([name, *files])
        return record

    def withdraw_if_purged(self, names: Sequence[str]) -> None:
        """Delete these files and raise JobError if a purge has begun since the export began, or if that is not known:
        they may have withdrawn rows, and the purge may have looked for them too early. A purge that begins later finds
        them."""
        try:
            for watch in self.watches:
                watch.check()
        except BaseException:
            for name in names:
                self.output.delete(name)
            raise

    def names(self, number: int) -> list[str]:
        """Names of a part's files, relative to the output."""
        return self.format.names(self._stem(number))

    @property
    def read_columns(self) -> list[str]:
        """The dataset columns that a part is made from."""
        return sorted({*self.columns, *(self.choice.columns if self.choice else ())})

    def _stem(self, number: int) -> str:
        return f"{number:0{self.digits}d}"

    def _write_file(self, name: str, write: Write) -> DataFile:
        with self.output.new_file() as file:
            write(file)
            digest, num_bytes = file_checksum(file)
            if not self.output.create_from(name, file) and self.output.checksum(name)[0] != digest:
                self.output.delete(name)  # has changed, or a run died before it wrote the record
                self.output.create_from(name, file)
        return DataFile(path=name, num_bytes=num_bytes, blake2b=digest)


def write_part(writer: PartWriter, number: int, slices: Sequence[GroupSlice]) -> ExportedPart:
    """`PartWriter.write` as a function for `Tasks`."""
    return writer.write(number, slices)


def release_output(writer: PartWriter, record: ExportRecord) -> None:
    """If no part is finished, restore the output to its state before this export, so that another export can use it.

    Does not touch a folder that another export has marked as its own.
    """
    output = writer.output
    output.remove_temporary(own=True)
    manifests, record_name = f"{writer.records}/manifests", f"{writer.records}/export.json"
    if output.list(manifests):
        return
    expected = {name for number in range(record.num_files) for name in writer.names(number)}
    folders = {name.rpartition("/")[0] for name in expected}
    if output.exists(record_name):
        if read_record(output, record_name, ExportRecord, OTHER_OUTPUT) != record:
            return
        for name in (f"{folder}/{name}".lstrip("/") for folder in folders for name in output.list(folder)):
            if name in expected:
                output.delete(name)
        output.delete(record_name)
    if not output.remote:
        for folder in (*(folders - {""}), manifests, writer.records):
            with suppress(OSError):  # missing, or not empty
                Path(output.path(folder)).rmdir()


def manifest_name(records: str, number: int) -> str:
    """File name of the record of a part."""
    return f"{records}/manifests/{number:05d}.json"


def is_written(output: Store, records: str, number: int) -> bool:
    """Whether a part has a record and all its files are as recorded. The record of any other part is deleted, even if
    it is damaged, because the part can be written again."""
    name = manifest_name(records, number)
    try:
        files = read_record(output, name, ExportedPart, OTHER_OUTPUT).files.values()
        if all(is_unchanged(output, file) for file in files):
            return True
    except FileNotFoundError:
        return False
    except DamagedManifestError:
        log.warning("%s is damaged; writing its part again", output.path(name))
    output.delete(name)
    return False
