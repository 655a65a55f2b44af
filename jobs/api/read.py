"""`pairmill.open`, `report`, `status` and `verify`: read datasets without changing them."""

import os

from pairmill.jobs.api.keywords import S3, StrPath, s3_config, suggests_keywords, text_of
from pairmill.jobs.report import ReportResult
from pairmill.jobs.report import report as write
from pairmill.jobs.results import BuildResult, current
from pairmill.pipeline.check.report import VerifyReport
from pairmill.pipeline.check.verify import verify as check
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.reader.dataset import Dataset


@suggests_keywords
def open(output: StrPath, *, s3: S3 | None = None) -> Dataset:
    """Open the output of a build or embed as one table, finished or not.

    Args:
        output: The output folder, local or `s3://`.
        s3: S3 settings that are not in the environment: `{"endpoint": "http://minio:9000"}`.

    Raises:
        PlanError: The folder is not the output of a job.
        DatasetError: No shard is finished yet.
    """
    return Dataset.of(_store(output, s3))


@suggests_keywords
def report(
    output: StrPath,
    *,
    subset: str | None = None,
    compare: StrPath | None = None,
    out: StrPath | None = None,
    s3: S3 | None = None,
) -> ReportResult:
    """Write one HTML page with pictures and plots: what was lost and why, the scores, and what other thresholds
    would keep.

    Args:
        output: The output folder, local or `s3://`, finished or not.
        subset: Name of a subset to report on.
        compare: Another subset, or another output folder, to compare it with.
        out: The file to write. None: `report.html` in the output folder, or `report-NAME.html` for a subset.
        s3: See `open`.

    Returns:
        The path of the page, and how many rows its charts and pictures come from.

    Raises:
        JobError: The file cannot be written, or there is nothing to compare with.
        PlanError: The folder is not the output of a job.
        SubsetError: There is no such subset, or it is older than the dataset.
    """
    return write(_store(output, s3), subset, text_of(compare), text_of(out))


@suggests_keywords
def status(output: StrPath, *, s3: S3 | None = None) -> BuildResult:
    """Report a job's progress: shards, rows and their statuses. Works while the job runs, from any machine.

    Args:
        output: The output folder, local or `s3://`.
        s3: See `open`.

    Raises:
        PlanError: The folder is not the output of a job.
    """
    return current(_store(output, s3))


@suggests_keywords
def verify(output: StrPath, *, rescore: int = 64, s3: S3 | None = None) -> VerifyReport:
    """Reread every committed shard and check counts, checksums, tar and Parquet keys, and a sample of the scores.

    Args:
        output: The output folder, local or `s3://`.
        rescore: Number of pairs to score again, spread over the shards. 0: none.
        s3: See `open`.

    Returns:
        What was checked. `holds` and `problems` give the outcome; problems raise no error.

    Raises:
        PlanError: The folder is not the output of a job.
    """
    return check(_store(output, s3), rescore)


def _store(output: StrPath, s3: S3 | None) -> Store:
    return Store(os.fspath(output), s3_config(s3))
