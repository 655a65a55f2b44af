"""`pairmill.build`, `embed`, `add_model` and `retry`: make datasets and add to them."""

import os
import warnings
from collections.abc import Collection, Mapping
from typing import Literal

from pairmill.jobs import add_model as adding
from pairmill.jobs import build as building
from pairmill.jobs import retry as retrying
from pairmill.jobs.add_model import ColumnsResult
from pairmill.jobs.api.keywords import (
    Model,
    Models,
    Paths,
    Settings,
    StrPath,
    model_of,
    models_of,
    refuse_beside_job,
    suggests_keywords,
    text_of,
)
from pairmill.jobs.api.progress import Progress, listener_for
from pairmill.jobs.cluster.fork_server import started_ahead
from pairmill.jobs.job_file import load_job, parse_settings
from pairmill.jobs.report import report_after_run
from pairmill.jobs.results import BuildResult
from pairmill.jobs.retry import RetryResult
from pairmill.pipeline.common.storage import Store
from pairmill.schemas.errors import JobError
from pairmill.schemas.jobs import BuildJob


@suggests_keywords
def build(
    source: BuildJob | Paths | None = None,
    output: StrPath | None = None,
    *,
    job_file: StrPath | None = None,
    models: Models | None = None,
    preset: str | None = None,
    min_similarity: float | Mapping[str, float] | None = None,
    limit: int | None = None,
    url_column: str | None = None,
    caption_column: str | None = None,
    settings: Settings | None = None,
    report: bool = False,
    progress: Progress = True,
) -> BuildResult:
    """Download, check, score and filter pairs into Parquet shards. If interrupted, make the same call again to resume.

    Args:
        source: Files, folders or globs of URLs and captions, local or `s3://`; or a complete BuildJob without other
            keywords.
        output: The folder to write, local or `s3://`.
        job_file: A job file (YAML); keywords override it.
        models: `tiny`, `ViT-B-32:openai`, ... Without models, pairs get no scores.
        preset: A set of rules: `none`, `datacomp-basic` or `laion2b`.
        min_similarity: Keep pairs with at least this cosine similarity: one number, or one per model alias.
        limit: Process only this many rows of the input.
        url_column: Column of URLs. None: guessed from common names.
        caption_column: Column of captions. None: guessed from common names.
        settings: Any other field of a job file: `{"fetch.timeout_s": 5}`.
        report: Write `report.html` to the output folder at the end. If this fails, you get a warning.
        progress: See `Progress`.

    Returns:
        What the output contains now. Failed shards are in `failures` and `shards_missing`; they raise no error.

    Raises:
        JobError: The job cannot run as given. Nothing was started.
    """
    keywords = {
        "output": output,
        "models": models_of(models),
        "rules.preset": preset,
        "rules.min_similarity": min_similarity,
        "source.limit_rows": limit,
        "source.url_column": url_column,
        "source.caption_column": caption_column,
    }
    job = _job_of(source, keywords, job_file, settings)
    with started_ahead(unless=job.run.address is not None), listener_for(progress) as listener:
        result = building.build(job, listener)
    if report:
        _write_report(job, result)
    return result


@suggests_keywords
def embed(
    source: BuildJob | Paths | None = None,
    output: StrPath | None = None,
    *,
    job_file: StrPath | None = None,
    models: Models | None = None,
    limit: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    caption_from_name: bool | None = None,
    settings: Settings | None = None,
    report: bool = False,
    progress: Progress = True,
) -> BuildResult:
    """Embed pictures and captions that you already have. If interrupted, make the same call again to resume.

    Args:
        source: WebDataset tars, folders of pictures, Parquet with pictures or captions, or outputs of pairmill, local
            or `s3://`; or a complete BuildJob with `source.kind: corpus` and no other keywords.
        output: The folder to write, local or `s3://`.
        job_file: A job file (YAML); keywords override it.
        models: `tiny`, `ViT-B-32:openai`, ...; at least one.
        limit: Process only this many rows of the input.
        dtype: `float32` or `bfloat16`. None: bfloat16 on a GPU, float32 on a CPU.
        device: `cuda` or `cpu`. None: a GPU if there is one.
        caption_from_name: In a folder, use file names as captions for pictures without a text file.
        settings: Any other field of a job file: `{"run.batch_size": 64}`.
        report: Write `report.html` to the output folder at the end. If this fails, you get a warning.
        progress: See `Progress`.

    Returns:
        What the output contains now. Failed shards are in `failures` and `shards_missing`; they raise no error.

    Raises:
        JobError: The job cannot run as given. Nothing was started.
    """
    keywords = {
        "output": output,
        "models": models_of(models, dtype),
        "source.limit_rows": limit,
        "source.caption_from_name": caption_from_name,
        "run.device": device,
    }
    job = _job_of(source, keywords, job_file, settings, "corpus")
    with started_ahead(unless=job.run.address is not None), listener_for(progress) as listener:
        result = building.build(job, listener)
    if report:
        _write_report(job, result)
    return result


@suggests_keywords
def add_model(
    output: StrPath,
    model: Model,
    *,
    alias: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    settings: Settings | None = None,
    progress: Progress = True,
) -> ColumnsResult:
    """Add the columns of one more model to a finished dataset, in `columns/ALIAS/`. Make the same call again to resume
    after an interruption, or to cover new shards.

    Args:
        output: The output folder of a build or embed.
        model: `ViT-B-16:openai`, ...
        alias: Suffix of its columns' names. None: derived from the model's name.
        dtype: `float32` or `bfloat16`. None: bfloat16 on a GPU, float32 on a CPU.
        device: `cuda` or `cpu`. None: a GPU if there is one.
        settings: Fields of `run` and `s3`: `{"run.batch_size": 64}`.
        progress: See `Progress`.

    Raises:
        JobError: The model cannot be added. Nothing was started.
    """
    fields = model_of(model, dtype) | ({"alias": alias} if alias else {})
    nested = parse_settings(settings or {}, {"run": {"device": device}} if device else {})
    with listener_for(progress) as listener:
        return adding.add_model(os.fspath(output), fields, nested, listener)


@suggests_keywords
def retry(
    output: StrPath,
    statuses: str | Collection[str] = (),
    *,
    settings: Settings | None = None,
    progress: Progress = True,
) -> RetryResult:
    """Retry rows that failed because of the network. Recovered rows go into new generations of their shards.

    Args:
        output: The output folder of a build.
        statuses: Statuses of rows to retry: `["timeout", Status.DNS_ERROR]`. By default, all that a retry might fix.
        settings: Settings for this run: `{"fetch.timeout_s": 60}`.
        progress: See `Progress`.

    Raises:
        JobError: The settings would change the output, or a status cannot be retried.
    """
    several = [statuses] if isinstance(statuses, str) else statuses
    with listener_for(progress) as listener:
        return retrying.retry(os.fspath(output), several, parse_settings(settings or {}), listener)


def _write_report(job: BuildJob, result: BuildResult) -> None:
    _, problem = report_after_run(Store(result.output, job.s3))
    if problem:
        warnings.warn(problem, stacklevel=4)


def _job_of(
    source: BuildJob | Paths | None,
    keywords: Mapping[str, object],
    job_file: StrPath | None,
    settings: Settings | None,
    kind: Literal["urls", "corpus"] = "urls",
) -> BuildJob:
    """The job described by the arguments of `build` or `embed`. Raises JobError."""
    if isinstance(source, BuildJob):
        refuse_beside_job({**keywords, "job_file": job_file, "settings": settings or None})
        if source.source.kind != kind:
            raise JobError(
                f"source.kind is {source.source.kind}, but pairmill.build takes urls, and pairmill.embed takes a corpus"
            )
        return source
    if job_file is None and (source is None or keywords["output"] is None):
        raise JobError("give a source and an output, or a job_file that names them")
    fields = {"source.kind": kind if kind == "corpus" else None, "source.paths": source, **keywords}
    return load_job(text_of(job_file), fields, settings or {})
