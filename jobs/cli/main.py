"""The `pairmill` command. Heavy imports live inside the commands, so that `--help` answers at once."""

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pairmill.jobs.cli.select import export, select
from pairmill.jobs.cli.submit import jobs as submitted_jobs
from pairmill.jobs.cli.submit import submit
from pairmill.jobs.cli.terminal import INTERRUPTED, JobFile, Json, Output, S3Settings, Settings, errors, open_store

if TYPE_CHECKING:
    from pairmill.jobs.build import BuildResult

app = typer.Typer(
    name="pairmill",
    help="From lists of web pictures and captions to scored, filtered training data for CLIP-like models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Models = Annotated[
    list[str] | None, typer.Option("--model", metavar="NAME[:PRETRAINED]", help="tiny, or ViT-B-32:openai; repeatable.")
]
Explain = Annotated[bool, typer.Option("--explain", help="Only say what would be done: pools, memory, objects, rate.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Only the first N rows of the input.", min=1)]


@app.command()
def build(
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE... OUT", help="Files, folders or globs of URLs and captions; last: the output."),
    ] = None,
    job_file: JobFile = None,
    settings: Settings = None,
    limit: Limit = None,
    model: Models = None,
    url_column: Annotated[str | None, typer.Option(help="Guessed where it is not given.")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Guessed where it is not given.")] = None,
    min_similarity: Annotated[float | None, typer.Option(help="Keep pairs at or above this cosine.")] = None,
    preset: Annotated[str | None, typer.Option(help="Rules: none, datacomp-basic or laion2b.")] = None,
    explain: Explain = False,
    as_json: Json = False,
) -> None:
    """Download, check, score and filter pairs into Parquet shards. The same command again goes on after a stop."""
    _run("build", locals())


def _add_model(
    paths: list[str], model: dict[str, Any], given: dict[str, Any], settings: list[str] | None, as_json: bool
) -> None:
    from pairmill.jobs.add_model import add_model
    from pairmill.jobs.job_file import parse_settings
    from pairmill.jobs.progress import ConsoleProgress
    from pairmill.pipeline.common.text import counted
    from pairmill.schemas.errors import JobError

    with errors():
        if len(paths) != 1:
            raise JobError("--add-model takes one argument, the output folder of a job")
        listener = ConsoleProgress()
        try:
            result = add_model(paths[0], model, parse_settings(settings or [], given), listener)
        except KeyboardInterrupt:
            listener.close()
            typer.echo("Stopped. The same command goes on from there.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        listener.close()
    _print_failures(result.build)
    if result.build.stopped:
        typer.echo(f"pairmill: stopped: {result.build.stopped}", err=True)
    if result.shards_missing:
        typer.echo(f"{counted(len(result.shards_missing), 'shard')} without: run the same command again", err=True)
    else:
        typer.echo(f"columns/{result.alias}: row for row beside pairs/")
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
    if result.shards_missing:
        raise typer.Exit(1)


def _run(command: str, parameters: dict[str, Any]) -> None:
    """A job from file and flags to its end, and what there is to say of it."""
    from pairmill.jobs.build import build as run_build
    from pairmill.jobs.cli.arguments import job_of
    from pairmill.jobs.progress import ConsoleProgress
    from pairmill.pipeline.common.text import counted
    from pairmill.schemas.jobs import BuildJob

    with errors():
        job = job_of(command, parameters)
        assert isinstance(job, BuildJob)
        if parameters["explain"]:
            from pairmill.jobs.explain import explain

            explanation = explain(job)
            typer.echo("\n".join(explanation.lines()))
            if parameters["as_json"]:
                typer.echo(json.dumps(explanation.as_dict()))
            return
        listener = ConsoleProgress()
        try:
            result = run_build(job, listener)
        except KeyboardInterrupt:
            listener.close()
            typer.echo(
                f"Stopped. What is committed stays in {job.output}; the same command goes on from there.", err=True
            )
            raise typer.Exit(INTERRUPTED) from None
        listener.close()
    _print_funnel(result)
    if refused := result.statuses.get("address_refused"):
        typer.echo(
            f"{counted(refused, 'private address')} refused; a network that you trust is allowed with, say, "
            "--set 'fetch.allow_networks=[127.0.0.0/8]', in a new output folder",
            err=True,
        )
    _print_failures(result)
    if result.stopped:
        typer.echo(f"pairmill: stopped: {result.stopped}", err=True)
    if result.shards_missing:
        cause = "put right what made them fail, then run" if result.failures else "run"
        missing = f"{len(result.shards_missing):,} of {counted(result.shards, 'shard')} missing"
        typer.echo(f"{missing}: {cause} the same command again", err=True)
    if parameters["as_json"]:
        typer.echo(json.dumps(result.as_dict()))
    if result.shards_missing:
        raise typer.Exit(1)


@app.command()
def embed(
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE... OUT", help="Tars, folders, Parquet with pictures, outputs of pairmill."),
    ] = None,
    job_file: JobFile = None,
    settings: Settings = None,
    model: Models = None,
    limit: Limit = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; bfloat16 on a GPU if not given.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; a GPU where there is one if not given.")] = None,
    caption_from_name: Annotated[
        bool, typer.Option("--caption-from-name", help="File names are captions where there is no text.")
    ] = False,
    add_model: Annotated[
        str | None, typer.Option(metavar="NAME[:PRETRAINED]", help="One more model for a finished dataset OUT.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Suffix of the added model's columns.")] = None,
    explain: Explain = False,
    as_json: Json = False,
) -> None:
    """Embed pictures and captions that are held already. The same command again goes on after a stop."""
    parameters = locals()
    if add_model:
        from pairmill.jobs.api.keywords import model_fields

        added = {
            **model_fields(add_model),
            **({"dtype": dtype} if dtype else {}),
            **({"alias": alias} if alias else {}),
        }
        _add_model(list(source or []), added, {"run": {"device": device}} if device else {}, settings, as_json)
        return
    _run("embed", parameters)


@app.command()
def retry(
    output: Output,
    status: Annotated[
        str | None, typer.Option(help="Which rows: timeout,dns_error,...; otherwise all that a later try may change.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="How to run: fetch.timeout_s=60.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch again what was lost to the network; new generations of the shards hold what it wins."""
    from pairmill.jobs.job_file import parse_settings
    from pairmill.jobs.progress import ConsoleProgress
    from pairmill.jobs.retry import retry as run_retry
    from pairmill.pipeline.common.text import counted

    with errors():
        listener = ConsoleProgress()
        try:
            statuses = [name for name in (status or "").split(",") if name]
            result = run_retry(output, statuses, parse_settings(settings or []), listener)
        except KeyboardInterrupt:
            listener.close()
            typer.echo(f"Stopped. What was won stays in {output}; the same command tries the rest again.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        listener.close()
    _print_funnel(result.build)
    typer.echo(f"{counted(result.retried, 'row')} fetched again, {result.recovered:,} recovered")
    _print_failures(result.build)
    if result.build.stopped:
        typer.echo(f"pairmill: stopped: {result.build.stopped}", err=True)
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
    if result.build.failures or result.build.stopped:
        raise typer.Exit(1)


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="Part of a name, such as ViT-B.")] = "",
    as_json: Json = False,
) -> None:
    """List the models that open_clip knows: size of embeddings and pictures, parameters, weights, which are on disk."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from pairmill.pipeline.encode.catalog import known_models

    with errors():
        found = known_models(pattern)
    if not found:
        typer.echo(f"pairmill: open_clip has no model with {pattern!r} in its name", err=True)
        raise typer.Exit(1)
    table = Table()
    for heading in ("model", "embedding", "pixels", "parameters"):
        table.add_column(heading, no_wrap=True)
    table.add_column("weights (* on disk)", overflow="fold", min_width=24)
    for model in found:
        tags = ", ".join(f"{tag}{'*' if tag in model.on_disk else ''}" for tag in model.tags)
        parameters = f"{model.millions_of_parameters:,.0f} M" if model.millions_of_parameters else "?"
        table.add_row(model.name, str(model.embedding_dim), str(model.image_side), parameters, tags)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if not any(model.millions_of_parameters for model in found):
        typer.echo("Parameters are counted where fewer models match: pairmill models ViT-B")
    if as_json:
        typer.echo(json.dumps([asdict(model) for model in found]))


@app.command()
def status(
    output: Output,
    follow: Annotated[bool, typer.Option("--watch", help="Keep looking until all shards are done.")] = False,
    every_s: Annotated[float, typer.Option("--every", help="Seconds between looks.", min=0.1)] = 5.0,
    settings: S3Settings = None,
    as_json: Json = False,
) -> None:
    """How far a job is: shards, rows, and what became of them. Works from any machine that can read OUT."""
    from pairmill.jobs.build import current
    from pairmill.jobs.cli.watch import watch
    from pairmill.jobs.progress import ConsoleProgress
    from pairmill.pipeline.common.text import counted

    with errors():
        store, listener = open_store(output, settings), ConsoleProgress()
        result = watch(store, listener, every_s, partial(typer.echo, err=True)) if follow else current(store)
        listener.close()
    done = result.shards - len(result.shards_missing)
    typer.echo(
        f"{result.output}: {done:,} of {counted(result.shards, 'shard')}, {counted(result.input_rows, 'row')} done"
    )
    _print_funnel(result)
    _print_failures(result)
    if as_json:
        typer.echo(json.dumps(result.as_dict()))


@app.command()
def verify(
    output: Output,
    rescore: Annotated[int, typer.Option(help="Pairs to score again, spread over the shards; 0: none.", min=0)] = 64,
    settings: S3Settings = None,
    as_json: Json = False,
) -> None:
    """Re-read every shard: counts, checksums, keys in tar and Parquet, and a sample of the scores."""
    from pairmill.pipeline.check.verify import verify as run_verify
    from pairmill.pipeline.common.text import counted

    with errors():
        report = run_verify(open_store(output, settings), rescore)
    counts = (("shard", report.shards), ("row", report.rows), ("pair", report.pairs), ("picture", report.pictures))
    typer.echo(", ".join(counted(number, noun) for noun, number in counts))
    if report.rescored:
        typer.echo(
            f"{counted(report.rescored, 'score')} computed again, off by {report.max_score_difference:.1e} at most"
        )
    if report.shards_missing:
        typer.echo(f"{report.shards_missing:,} of the planned shards not done yet")
    for problem in report.problems:
        typer.echo(f"problem: {problem}", err=True)
    if report.damaged:
        typer.echo(
            f"To make {counted(len(report.damaged), 'damaged shard')} again, delete in {output} what follows, then "
            f"build again: {' '.join(report.damaged[:20])}{' ...' if len(report.damaged) > 20 else ''}",
            err=True,
        )
    typer.echo("all that is committed holds" if report.holds else counted(len(report.problems), "problem"))
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    if not report.holds:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[str, typer.Option("--out", help="Where the demo writes.")] = "demo-out",
    pairs: Annotated[int, typer.Option(help="Pairs that the demo's web serves.", min=200)] = 2400,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 2026,
    as_json: Json = False,
) -> None:
    """Serve a small web of pictures with known truth, build a dataset from it, and compare."""
    from pairmill.jobs.demo.demo import run_demo

    with errors():
        try:
            as_it_should_be = run_demo(out, pairs, seed, as_json)
        except KeyboardInterrupt:
            typer.echo("Stopped: nothing is left running. The same command starts a new demo.", err=True)
            raise typer.Exit(INTERRUPTED) from None
    if not as_it_should_be:
        raise typer.Exit(1)


app.command()(select)
app.command()(export)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)(submit)
app.add_typer(submitted_jobs, name="jobs")


def main() -> None:
    """Entry point of the `pairmill` command."""
    app()


def _print_funnel(result: "BuildResult") -> None:
    from pairmill.jobs.progress import funnel

    if not result.rows_in:
        return
    if more := result.rows_in - result.input_rows:
        typer.echo(f"{result.input_rows:,} input rows, {more:,} more from lists of captions")
    typer.echo(funnel(result.rows_in, result.statuses))


def _print_failures(result: "BuildResult") -> None:
    for shard, error in result.failures.items():
        typer.echo(f"shard {shard:09d} failed: {error} (whole: {result.output}/failures/{shard:09d}.txt)", err=True)
