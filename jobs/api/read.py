"""`pairmill.open`, `status` and `verify`: read datasets without changing them."""

import os

from pairmill.jobs.api.keywords import S3, StrPath, s3_config, suggests_keywords
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
        PlanError: There is no output of a job.
        DatasetError: No shard is finished yet.
    """
    return Dataset.of(_store(output, s3))


@suggests_keywords
def status(output: StrPath, *, s3: S3 | None = None) -> BuildResult:
    """Report a job's progress: shards, rows and their statuses. Works while the job runs, from any machine.

    Args:
        output: The output folder, local or `s3://`.
        s3: See `open`.

    Raises:
        PlanError: There is no output of a job.
    """
    return current(_store(output, s3))


@suggests_keywords
def verify(output: StrPath, *, rescore: int = 64, s3: S3 | None = None) -> VerifyReport:
    """Read every committed shard again, and check counts, checksums, tar and Parquet keys, and a sample of the scores.

    Args:
        output: The output folder, local or `s3://`.
        rescore: Number of pairs to score again, spread over the shards. 0: none.
        s3: See `open`.

    Returns:
        What was checked. `holds` and `problems` give the outcome; problems raise nothing.

    Raises:
        PlanError: There is no output of a job.
    """
    return check(_store(output, s3), rescore)


def _store(output: StrPath, s3: S3 | None) -> Store:
    return Store(os.fspath(output), s3_config(s3))
