"""`pairmill report`: writes one HTML page about a dataset or a subset. Builds write it too, when they end."""

from dataclasses import asdict, dataclass
from pathlib import Path

from pairmill.pipeline.common.files import S3_SCHEMES, absolute, is_remote
from pairmill.pipeline.common.local_file import new_local_file
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.storage import StorageError, Store
from pairmill.pipeline.common.text import clean_text, describe, pairmill_command
from pairmill.pipeline.dataset.purge_watch import PurgeWatch
from pairmill.pipeline.report.report import Report, compared_with, make_report
from pairmill.pipeline.report.sample import MAX_ROWS
from pairmill.schemas.errors import JobError, PairmillError

ROWS_AFTER_RUN = 250_000
"""Maximum number of rows that the report at the end of a build reads, so few that it takes seconds. `pairmill report`
reads more."""


@dataclass(frozen=True)
class ReportResult:
    """A report that was written."""

    path: str
    rows: int
    """All rows of the dataset, except withdrawn ones."""
    rows_read: int
    """Rows that its charts and pictures come from; the counts of the funnel are always exact."""
    num_bytes: int

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        return asdict(self)


def report(
    store: Store,
    subset: str | None = None,
    compare: str | None = None,
    out: str | None = None,
    max_rows: int = MAX_ROWS,
    on_step: OnStep = ignore_step,
) -> ReportResult:
    """Write the report of an output folder, finished or not.

    Args:
        store: The output folder.
        subset: Name of a subset to report on.
        compare: Another subset of the dataset, or another output folder.
        out: The file, local or `s3://`. None: `report.html` in the output folder, `report-NAME.html` for a subset.
        max_rows: Maximum number of rows to read.
        on_step: Called with the number of shards that were read.

    Raises:
        JobError: The file cannot be written, there is nothing to compare with, or a purge has begun.
        PlanError: The folder is not the output of a job.
        SubsetError: There is no such subset, or it is older than the dataset.
    """
    watch, name = PurgeWatch.start(store), f"report-{subset}.html" if subset else "report.html"
    with watch.explained():
        made = make_report(store, subset, None if compare is None else compared_with(store, compare), max_rows, on_step)
    watch.check()
    result = _write(store, out, name, made)
    try:
        watch.check()
    except JobError:  # the purge may have deleted the reports before this one was written
        _delete(store, result.path)
        raise
    return result


def _delete(store: Store, path: str) -> None:
    if is_remote(path):
        folder, _, name = path.rpartition("/")
        Store(folder, store.files.s3).delete(name)
    else:
        Path(path).resolve().unlink(missing_ok=True)  # a symlink remains, as when the report is written


def report_after_run(store: Store) -> tuple[str | None, str | None]:
    """(path of the report, None), or (None, why it could not be written). A failed report must not fail the run."""
    try:
        return report(store, max_rows=ROWS_AFTER_RUN).path, None
    except Exception as error:
        expected = isinstance(error, (PairmillError, OSError))
        why = clean_text(str(error)) if expected else describe(error)
        remedy = f"the dataset is fine; to write the report, run: {pairmill_command('report', store.root)}"
        return None, f"the report could not be written ({why}); {remedy}"


def _write(store: Store, out: str | None, name: str, made: Report) -> ReportResult:
    data = made.html.encode()
    if out is None:
        path = _write_beside_dataset(store, name, data)
    else:
        path = _write_remote(store, out, data) if is_remote(out) else _write_local(out, data)
    return ReportResult(path, made.rows, made.rows_read, len(data))


def _write_beside_dataset(store: Store, name: str, data: bytes) -> str:
    try:
        store.replace(name, data)
        store.remove_temporary()
    except StorageError as error:
        raise JobError(f"{error}; or write the report elsewhere with --out FILE") from None
    return store.path(name)


def _write_remote(store: Store, out: str, data: bytes) -> str:
    folder, _, name = out.rpartition("/")
    if not out.startswith(S3_SCHEMES) or not name or folder.endswith("/"):
        raise JobError(f"--out {out!r}: give a local file or s3://BUCKET/FILE")
    try:
        Store(folder, store.files.s3).replace(name, data)
    except FileNotFoundError as error:
        raise JobError(f"--out {out!r}: cannot be written to ({error.strerror or error})") from None
    return out


def _write_local(out: str, data: bytes) -> str:
    path = absolute(out)
    with new_local_file(path) as file:
        file.write(data)
    return path
