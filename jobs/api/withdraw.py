"""`pairmill.purge` and `gc`: withdraw rows from a dataset, and delete files that are no longer needed."""

import os
from collections.abc import Sequence

from pairmill.jobs import purge as purging
from pairmill.jobs import upkeep
from pairmill.jobs.api.keywords import S3, Settings, StrPath, s3_config, suggests_keywords
from pairmill.jobs.job_file import parse_settings, s3_of
from pairmill.jobs.purge import PurgeResult, purge_job
from pairmill.jobs.upkeep import GcResult
from pairmill.pipeline.common.storage import Store
from pairmill.schemas.purge import ListKind


@suggests_keywords
def purge(
    output: StrPath,
    *,
    uids: StrPath | None = None,
    urls: StrPath | None = None,
    hosts: StrPath | None = None,
    sha256: StrPath | None = None,
    pdq: StrPath | None = None,
    reason: str | None = None,
    exports: StrPath | Sequence[StrPath] = (),
    dry_run: bool = False,
    settings: Settings | None = None,
) -> PurgeResult:
    """Withdraw rows from all files of a dataset and block them in later runs. If interrupted, make the same call again.

    Each list is a text file with one value per line, or Parquet with a column `uid`, `url`, `host`, `sha256` or `pdq`.
    Without lists, an interrupted purge is finished, and earlier requests are applied to rows added since then.
    Nothing else may write to the output during a purge.

    Args:
        output: The output folder of a build or embed, local or `s3://`.
        uids: Uids: 32 hex digits or UUIDs.
        urls: URLs. Different spellings of the same request match, such as a host in upper case.
        hosts: Hosts, with all of their subdomains.
        sha256: Digests of the original bytes of pictures.
        pdq: PDQ hashes. Pictures within 31 bits of any of them are withdrawn; requires a column `pdq` in the dataset.
        reason: Why the rows are withdrawn. It stays in the ledger, so it must not contain a withdrawn value.
        exports: Further exports to purge, which the dataset has no record of.
        dry_run: Only find the rows, and what would change; nothing is changed.
        settings: Settings for this run: `{"run.address": "auto", "s3.endpoint": "http://minio:9000"}`.

    Returns:
        What changed, and the commands that recreate what had to be deleted.

    Raises:
        JobError: A list or the reason is wrong, or another purge is running. Nothing was changed.
        StorageError: Files cannot be deleted, because the permission is missing.
    """
    lists: dict[ListKind, StrPath | None] = {"uid": uids, "url": urls, "host": hosts, "sha256": sha256, "pdq": pdq}
    given: dict[ListKind, str] = {kind: os.fspath(path) for kind, path in lists.items() if path is not None}
    several = [exports] if isinstance(exports, str | os.PathLike) else exports
    parsed = parse_settings(settings or {})
    job = purge_job(given, reason, [os.fspath(path) for path in several], dry_run, parsed)
    return purging.purge(Store(os.fspath(output), s3_of(parsed)), job)


@suggests_keywords
def gc(output: StrPath, *, dry_run: bool = False, s3: S3 | None = None) -> GcResult:
    """Delete superseded generations of shards and columns, and files that interrupted commands left behind.

    Args:
        output: The output folder of a build or embed, local or `s3://`.
        dry_run: Only list the files.
        s3: See `open`.

    Raises:
        JobError: A purge is not finished.
        PlanError: The folder is not the output of a job.
    """
    return upkeep.gc(Store(os.fspath(output), s3_config(s3)), dry_run)
