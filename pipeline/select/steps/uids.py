"""The step `uids`: keeps the rows that a file lists."""

from dataclasses import dataclass

import pyarrow as pa

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.uid_file import UidFile, UidIn
from pairmill.schemas.subset import StepReport, UidFileReport


@dataclass(frozen=True)
class UidsStep:
    """Keeps the rows whose uid is in a file."""

    file: UidFile

    @classmethod
    def open(cls, files: Files, uri: str) -> "UidsStep":
        """Create the step. Reads the file to check it. Raises StepError."""
        file = UidFile.of(files, uri)
        file.load()
        return cls(file)

    @property
    def columns(self) -> frozenset[str]:
        """The uid, which every dataset has."""
        return frozenset({"uid"})

    def check(self, schema: pa.Schema) -> None:
        """There is nothing to check, because `open` has already checked the file."""

    def run(self, selector: Selector, number: int) -> None:
        """Add a filter."""
        selector.filters.append(UidIn(number, self.file))

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """Add the file to the report, and whether it has changed since the last selection."""
        before = earlier.uids.blake2b if earlier and earlier.uids else None
        found = UidFileReport(
            num_uids=len(self.file.load()),
            blake2b=self.file.blake2b,
            earlier_blake2b=before if before != self.file.blake2b else None,
        )
        return report.model_copy(update={"uids": found})
