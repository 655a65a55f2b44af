"""`pairmill build`, `embed` and `retry`: turn options into a job, run it and print the outcome."""

from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.options import (
    BuildOptions,
    EmbedOptions,
    Explain,
    JobFile,
    Json,
    Limit,
    Models,
    Output,
    RetryOptions,
    Settings,
)
from pairmill.jobs.cli.report import NoReport, write_report
from pairmill.jobs.cli.results import print_failures, print_funnel, print_private_addresses, print_stopped
from pairmill.jobs.cli.terminal import errors, print_json, progress, say
from pairmill.jobs.cluster.fork_server import started_ahead
from pairmill.schemas.errors import JobError

if TYPE_CHECKING:
    from pairmill.jobs.results import BuildResult
    from pairmill.schemas.jobs import BuildJob
    from pairmill.schemas.s3 import S3Config

_SHOWN_MANIFESTS = 5


def build(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE... OUT", help="Files, folders or globs of URLs and captions, then the output folder."
        ),
    ] = None,
    job_file: JobFile = None,
    settings: Settings = None,
    limit: Limit = None,
    model: Models = None,
    url_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="Guessed if not given.")] = None,
    caption_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="Guessed if not given.")] = None,
    min_similarity: Annotated[
        float | None, typer.Option(metavar="COSINE", help="Keep pairs at or above this similarity.")
    ] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="Rules: none, datacomp-basic or laion2b.")] = None,
    no_report: NoReport = False,
    explain: Explain = False,
    as_json: Json = False,
) -> None:
    """Turn lists of URLs into a dataset.

    Downloads, checks, scores and filters pairs into Parquet shards. If it is interrupted, run the same command again to
    resume.
    """
    options = BuildOptions(
        source=source,
        job_file=job_file,
        settings=settings,
        limit=limit,
        model=model,
        url_column=url_column,
        caption_column=caption_column,
        min_similarity=min_similarity,
        preset=preset,
    )
    with errors(), started_ahead(unless=explain):
        from pairmill.jobs.cli.arguments import build_job

        _run(build_job(options), explain, not no_report, as_json)


def embed(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE... OUT", help="Tars, folders, Parquet or outputs of pairmill, then the output folder."
        ),
    ] = None,
    job_file: JobFile = None,
    settings: Settings = None,
    model: Models = None,
    limit: Limit = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="float32 or bfloat16; if not given, bfloat16 on a GPU.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cuda or cpu; if not given, a GPU if there is one.")
    ] = None,
    caption_from_name: Annotated[
        bool, typer.Option("--caption-from-name", help="Use file names as captions where there are no caption files.")
    ] = False,
    add_model: Annotated[
        str | None, typer.Option(metavar="NAME[:WEIGHTS]", help="Add one more model to the finished dataset OUT.")
    ] = None,
    alias: Annotated[str | None, typer.Option(metavar="ALIAS", help="Suffix of the added model's columns.")] = None,
    no_report: NoReport = False,
    explain: Explain = False,
    as_json: Json = False,
) -> None:
    """Embed a corpus that you already have.

    If it is interrupted, run the same command again to resume. --add-model adds one more model's columns to a finished
    dataset.
    """
    options = EmbedOptions(
        source=source,
        job_file=job_file,
        settings=settings,
        model=model,
        limit=limit,
        dtype=dtype,
        device=device,
        caption_from_name=caption_from_name,
        add_model=add_model,
        alias=alias,
    )
    with errors(), started_ahead(unless=explain):
        from pairmill.jobs.cli.arguments import embed_job

        if add_model is None:
            _run(embed_job(options), explain, not no_report, as_json)
        elif explain:
            raise JobError("--explain does not work with --add-model")
        else:
            _add_model(options, not no_report, as_json)


def retry(
    output: Output,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Statuses to retry: timeout,dns_error,...; by default, all that a retry might fix."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="A setting for this run, such as fetch.timeout_s=60; repeatable."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Retry rows whose download failed.

    Recovered rows go into new generations of their shards; all other rows stay as they are.
    """
    options = RetryOptions(output=output, status=status, settings=settings)
    with errors(), started_ahead():
        from pairmill.jobs.job_file import parse_settings
        from pairmill.jobs.retry import retry as run_retry
        from pairmill.pipeline.common.text import counted, shown_path

        statuses = [name for name in (options.status or "").split(",") if name]
        after_stop = f"Recovered rows stay in {shown_path(output)}; run the same command again to retry the rest."
        with progress(after_stop) as listener:
            result = run_retry(output, statuses, parse_settings(options.settings or []), listener)
    print_funnel(result.build)
    withdrawn = f", {result.withdrawn:,} withdrawn" if result.withdrawn else ""
    say(f"{counted(result.retried, 'row')} fetched again, {result.recovered:,} recovered{withdrawn}")
    print_failures(result.build)
    print_stopped(result.build)
    if as_json:
        print_json(result.as_dict())
    if result.build.failures or result.build.stopped:
        raise typer.Exit(1)


def _run(job: "BuildJob", explain: bool, with_report: bool, as_json: bool) -> None:
    """Run a job, print the outcome and write the report, or only explain the job."""
    if explain:
        _explain(job, as_json)
        return
    from pairmill.jobs.build import build as run_build
    from pairmill.pipeline.common.text import shown_path

    after_stop = f"Finished shards stay in {shown_path(job.output)}; run the same command again to resume."
    with progress(after_stop) as listener:
        result = run_build(job, listener)
    try:
        _print_outcome(result)
    except OSError:  # nobody reads stdout any more, or its disk is full
        if with_report:
            _write_report(result, job.s3)
        raise
    path = _write_report(result, job.s3) if with_report else None
    if as_json:
        print_json({**result.as_dict(), "report": path})
    if result.shards_missing:
        raise typer.Exit(1)


def _print_outcome(result: "BuildResult") -> None:
    print_funnel(result)
    print_private_addresses(result)
    print_failures(result)
    print_stopped(result)
    _print_missing(result)


def _write_report(result: "BuildResult", s3: "S3Config") -> str | None:
    """Write the report, unless there is nothing to report on. Returns its path."""
    from pairmill.pipeline.common.storage import Store

    if result.stopped or not result.rows_in:
        return None
    return write_report(Store(result.output, s3))


def _explain(job: "BuildJob", as_json: bool) -> None:
    from pairmill.jobs.explain import explain

    explanation = explain(job)
    say("\n".join(explanation.lines()))
    if as_json:
        print_json(explanation.as_dict())


def _print_missing(result: "BuildResult") -> None:
    from pairmill.pipeline.common.text import counted

    if not result.shards_missing:
        return
    remedy = "fix the cause of the failures, then run" if result.failures else "run"
    missing = f"{len(result.shards_missing):,} of {counted(result.shards, 'shard')} missing"
    say(f"{missing}: {remedy} the same command again", err=True)


def _add_model(options: EmbedOptions, with_report: bool, as_json: bool) -> None:
    """`embed OUT --add-model`: add one more model to a finished dataset."""
    from pairmill.jobs.add_model import add_model
    from pairmill.jobs.cli.arguments import added_model
    from pairmill.jobs.job_file import parse_settings, s3_of
    from pairmill.pipeline.common.text import counted

    model = added_model(options)
    (output,) = options.source or []
    device = {"run": {"device": options.device}} if options.device else {}
    with progress("Run the same command again to resume.") as listener:
        result = add_model(output, model, parse_settings(options.settings or [], device), listener)
    print_failures(result.build)
    print_stopped(result.build)
    if result.shards_missing:
        missing = counted(len(result.shards_missing), "shard")
        say(f"{missing} without the new columns: run the same command again", err=True)
    else:
        say(f"columns/{result.alias} has the new columns, in the same row order as in pairs/")
    if left_out := result.pictures_left_out:
        names = ", ".join(list(left_out)[:_SHOWN_MANIFESTS]) + (", ..." if len(left_out) > _SHOWN_MANIFESTS else "")
        say(
            f"{counted(sum(left_out.values()), 'picture')} without an embedding: missing or changed since the dataset "
            f"was made. Restore them, move the following files out of columns/{result.alias}/manifests, and run the "
            f"same command again: {names}",
            err=True,
        )
    whole = with_report and not result.shards_missing
    path = _write_report(result.build, s3_of(parse_settings(options.settings or []))) if whole else None
    if as_json:
        print_json({**result.as_dict(), "report": path})
    if result.shards_missing:
        raise typer.Exit(1)
