"""Marks an output folder as one export's, and compares an export with the one that is already there."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

import pyarrow as pa

from pairmill.pipeline.columns.added_columns import AddedColumns
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_record, record_bytes
from pairmill.pipeline.dataset.output_folder import is_export, records_folder
from pairmill.pipeline.export.write import OTHER_OUTPUT, PartWriter, release_output
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportRecord
from pairmill.schemas.pairs import score_column_names


def begun_export(output: Store) -> ExportRecord | None:
    """The record of the export in this folder, if there is one."""
    return _read(output, records_folder(output)) if is_export(output) else None


def newer_columns(
    begun: ExportRecord | None, columns: Sequence[str], added: Sequence[AddedColumns], models: Sequence[str]
) -> tuple[str, ...]:
    """Those of the `columns` of models and scores that were added to the datasets after the export in the folder began.
    Its files cannot get them. `models`: the aliases that the job names, whose columns must be written.
    """
    if begun is None:
        return ()
    later = {name for each in added for one in each.complete for name in one.columns}
    later -= {name for alias in models for name in score_column_names(alias)}
    return tuple(name for name in columns if name in later and name not in begun.columns)


def without_columns(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    """The schema without these columns."""
    return pa.schema([field for field in schema if field.name not in names])


@contextmanager
def claimed_output(writer: PartWriter, record: ExportRecord) -> Iterator[ExportRecord]:
    """Mark the folder as this export's. An error or Ctrl-C before the first part is done removes the mark. Raises
    JobError.
    """
    try:
        yield claim_output(writer.output, writer.records, record)
    except BaseException:
        with suppress(Exception):
            release_output(writer, record)
        raise


def claim_output(output: Store, records: str, record: ExportRecord) -> ExportRecord:
    """Mark the folder as this export's. Returns the mark, which an earlier version may have written. Raises JobError if
    it is another export's."""
    if output.create(f"{records}/export.json", record_bytes(record)):
        return record
    existing = _read(output, records)
    of_version = {"layout", "columns"} if existing.layout < record.layout else set[str]()
    if not existing.added:  # an earlier version did not record it
        of_version.add("added")
    for name, value in record:
        if name not in of_version and getattr(existing, name) != value:
            difference = _difference(existing, record, name)
            raise JobError(f"{output.root} contains another export ({difference}); choose another folder")
    return existing


def _difference(existing: ExportRecord, record: ExportRecord, name: str) -> str:
    """How the existing export differs from this one in a field."""
    if name == "subset_attempt":
        what = f"the subset {record.subset!r}" if record.subset else "the mixture"
        return (
            f"of {what} before it was selected again, or changed by a purge, so it cannot be continued or repaired; it "
            "can be deleted once it is no longer needed"
        )
    if name == "columns":
        lacks, more = ({*a} - {*b} for a, b in ((record.columns, existing.columns), (existing.columns, record.columns)))
        parts = ((word, sorted(names)) for word, names in (("without", lacks), ("also with", more)))
        shown = [f"{word} {', '.join(names[:5])}{', ...' * (len(names) > 5)}" for word, names in parts if names]
        return "; ".join(shown) or "with its columns in another order"
    if name == "added":
        names = sorted({*existing.added, *record.added})
        changed = [each for each in names if existing.added.get(each) != record.added.get(each)]
        return f"with values of {', '.join(changed[:5])} from before they were replaced"
    return f"{name} {getattr(existing, name)!r}, not {getattr(record, name)!r}"


def _read(output: Store, records: str) -> ExportRecord:
    return read_record(output, f"{records}/export.json", ExportRecord, OTHER_OUTPUT)
