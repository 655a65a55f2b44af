"""The step `balance`: keeps fewer rows of frequent entries."""

from dataclasses import dataclass, field

import pyarrow as pa

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.select.balance.balancer import balance_rows
from pairmill.pipeline.select.balance.row_entries import ColumnEntries, ConceptEntries, Entries, HostEntries
from pairmill.pipeline.select.balance.word_list import WordFile
from pairmill.pipeline.select.expression_errors import ExpressionError
from pairmill.pipeline.select.expressions import named_column
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.step_error import StepError
from pairmill.schemas.balance import CONCEPT, HOST, HOST_OF_URL, Balance, BalanceReport
from pairmill.schemas.subset import StepReport


@dataclass
class BalanceStep:
    """Balances rows by the curve of MetaCLIP."""

    balance: Balance
    entries: Entries
    found: BalanceReport | None = field(default=None, init=False)

    @classmethod
    def open(cls, files: Files, balance: Balance) -> "BalanceStep":
        """Create the step. Reads the list of entries, if there is one, to check it. Raises StepError."""
        if balance.by in (HOST, HOST_OF_URL):
            return cls(balance, HostEntries())
        if balance.by != CONCEPT:
            return cls(balance, ColumnEntries(named_column(balance.by)))
        assert balance.entries is not None
        try:
            file = WordFile.of(files, balance.entries)
        except StepError as error:
            raise StepError(f"{error}; `entries` must name a text file with one entry per line") from None
        file.load()
        return cls(balance, ConceptEntries(file, balance.caption, balance.language))

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the entries, and the uid."""
        return self.entries.columns | {"uid"}

    def check(self, schema: pa.Schema) -> None:
        """Check that `by` has one meaning, that values can be compared and that captions and languages are text. Raises
        ExpressionError."""
        if self.balance.by == HOST and HOST in schema.names:
            raise ExpressionError(
                f"by: {HOST} is the host of the URL, but also a column of this dataset; write by: {HOST_OF_URL} or by: "
                f"col('{HOST}')"
            )
        self.entries.check(schema)

    def run(self, selector: Selector, number: int) -> None:
        """Count entries, then draw rows."""
        self.found = balance_rows(selector, number, self.balance, self.entries)

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """Add the entries to the report, and whether their file has changed since the last selection."""
        assert self.found is not None
        found = self.found
        if isinstance(self.entries, ConceptEntries):
            file = self.entries.file
            before = earlier.balance.blake2b if earlier and earlier.balance else None
            values = {
                "listed_entries": len(file.load()),
                "blake2b": file.blake2b,
                "earlier_blake2b": before if before != file.blake2b else None,
            }
            found = found.model_copy(update=values)
        return report.model_copy(update={"balance": found})
