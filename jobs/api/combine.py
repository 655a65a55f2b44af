"""`pairmill.mix`: mixes several datasets into one."""

import os
from collections.abc import Mapping, Sequence

from pairmill.jobs import mix as mixing
from pairmill.jobs.api.keywords import Settings, StrPath, suggests_keywords
from pairmill.jobs.job_file import load_mix_job, parse_settings, s3_of
from pairmill.pipeline.common.storage import Store
from pairmill.schemas.errors import JobError
from pairmill.schemas.mixture import MixSource, Mixture


@suggests_keywords
def mix(
    output: StrPath,
    sources: Mapping[str, float] | Sequence[str | MixSource] | None = None,
    *,
    count: int | None = None,
    repeat: bool | None = None,
    dedup: Sequence[str] | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    refresh: bool = False,
    settings: Settings | None = None,
) -> Mixture:
    """Mix rows of several datasets in the given proportions. `export` and `PairDataset` read them as one dataset.

    Args:
        output: A new folder for the mixture, local or `s3://`. The datasets stay as they are.
        sources: `{"out_a:clean": 0.7, "out_b": 0.3}`: each dataset, or subset of one, with its share. A row
            found in several datasets is taken from the first of them.
        count: Samples per epoch; by default, as many as possible without repeating a row.
        repeat: With `count`, repeat the rows of a dataset that has too few for its share.
        dedup: Rows of different datasets are duplicates if they have the same `uid`, or the same value in one of these
            columns: `["sha256"]` by default.
        dry_run: Only count; nothing is written.
        overwrite: Replace a mixture in this folder.
        refresh: Mix the datasets again with the settings of this mixture, for example after a retry of one of them.
        settings: Any other field of the job: `{"seed": 1, "s3.endpoint": "http://minio:9000"}`.

    Returns:
        The record of the mixture: for each dataset, its rows, samples per epoch and what happened to the other rows.

    Raises:
        JobError: The job cannot run as given. Nothing was written.
        SubsetError: There is no such subset, or a shard has been rebuilt since the subset was selected.
    """
    fields: dict[str, object] = {"count": count, "repeat": repeat, "dedup": None if dedup is None else list(dedup)}
    if refresh:
        if sources is not None or overwrite or any(value is not None for value in fields.values()):
            raise JobError("refresh reuses the settings of the mixture: give no others")
        fields = mixing.fields_of(Store(os.fspath(output), s3_of(parse_settings(settings or {}))))
    else:
        fields["sources"] = _sources(sources or [])
    return mixing.mix(load_mix_job({"output": output, **fields}, settings or {}), dry_run, overwrite or refresh)


def _sources(given: Mapping[str, float] | Sequence[str | MixSource]) -> list[dict[str, object]]:
    if isinstance(given, Mapping):
        given = [f"{name}={share}" for name, share in given.items()]
    try:
        sources = [each if isinstance(each, MixSource) else MixSource.parse(each) for each in given]
    except ValueError as error:
        raise JobError(f"sources: {error}") from None
    return [source.model_dump() for source in sources]
