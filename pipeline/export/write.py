"""One stretch of an export, written: data files first, then its manifest, create-only, as everywhere."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.export.formats import Format, Stretch, Write
from pairmill.pipeline.export.gather import Gatherer, Origin
from pairmill.pipeline.export.order import Group
from pairmill.schemas.export import ExportedFile
from pairmill.schemas.manifest import DataFile


@dataclass(frozen=True)
class Exporter:
    """Writes stretches of one export. Travels to the workers."""

    origin: Origin
    output: Store
    format: Format
    seed: int | None
    columns: tuple[str, ...]
    digits: int
    """Of a file's number."""

    def write(self, number: int, parts: Sequence[tuple[Group, int, int]]) -> ExportedFile:
        """The files of a stretch, and the record that they are there."""
        with closing(Gatherer(self.origin, self.seed)) as gatherer, self.output.new_file() as aside:
            rows = gatherer.rows(parts, self.columns)
            places = gatherer.pictures(rows, aside) if self.format.wants_pictures else []
            stretch = Stretch(f"{number:0{self.digits}d}", rows.select(list(self.columns)), aside, places)
            files = {name: self._file(name, write) for name, write in self.format.files(stretch).items()}
        record = ExportedFile(number=number, rows=rows.num_rows, files=files)
        self.output.create(manifest_name(number), record.model_dump_json(indent=1).encode())
        return record

    def _file(self, name: str, write: Write) -> DataFile:
        with self.output.new_file() as file:
            write(file)
            digest, num_bytes = file_checksum(file)
            if not self.output.create_from(name, file) and self.output.checksum(name)[0] != digest:
                self.output.delete(name)  # of a run that died before its manifest
                self.output.create_from(name, file)
        return DataFile(path=name, num_bytes=num_bytes, blake2b=digest)


def write_stretch(exporter: Exporter, number: int, parts: Sequence[tuple[Group, int, int]]) -> ExportedFile:
    """`Exporter.write`, as a function for `Tasks`."""
    return exporter.write(number, parts)


def manifest_name(number: int) -> str:
    """Of the record of one stretch."""
    return f"export/manifests/{number:05d}.json"


def is_written(output: Store, number: int) -> bool:
    """Whether a stretch has its record, and the files that it names are there; a record without them is removed."""
    name = manifest_name(number)
    if not output.exists(name):
        return False
    files = ExportedFile.model_validate_json(output.read(name)).files.values()
    if all(output.exists(file.path) for file in files):
        return True
    output.delete(name)
    return False
