"""`pairmill score`: adds scores to a finished dataset."""

from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.options import JobFile, Json, Output, ScoreOptions, Settings
from pairmill.jobs.cli.terminal import errors, print_json, progress, say

if TYPE_CHECKING:
    from pairmill.jobs.score import ScoreResult

_SHOWN_FAILURES = 5
_SHOWN_MANIFESTS = 5
_SHOWN_COLUMNS = 3


def score(
    output: Output,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the score; its columns' names start with it.")
    ] = None,
    given: Annotated[
        str | None,
        typer.Option(
            "--score",
            metavar="SCORE",
            help="As in the job file: 'head: aesthetic.safetensors'; see `pairmill fields --of score`.",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="PRESET", help="The score NAME of this preset; see pairmill presets.")
    ] = None,
    job_file: JobFile = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Add a score to a finished dataset.

    Writes its columns to OUT/columns/NAME; select, report, explore and export can use them at once. If no kind of
    score is given, adds the existing score NAME to new shards. If it is interrupted, run the same command again to
    resume.
    """
    options = ScoreOptions(output=output, name=name, given=given, preset=preset, job_file=job_file, settings=settings)
    with errors():
        from pairmill.jobs.cli.arguments import score_job
        from pairmill.jobs.score import score as run_score

        job = score_job(options)
        with progress("Scored shards are kept; run the same command again to resume.") as listener:
            result = run_score(job, listener.step, listener)
    _print(result)
    if as_json:
        print_json(result.as_dict())
    if result.shards_missing:
        raise typer.Exit(1)


def _print(result: "ScoreResult") -> None:
    from pairmill.pipeline.common.text import counted, pairmill_command

    for shard in list(result.failures)[:_SHOWN_FAILURES]:
        say(f"shard {shard:09d}: {result.failures[shard]}", err=True)
    if (more := len(result.failures) - _SHOWN_FAILURES) > 0:
        say(f"... and {counted(more, 'more shard')} failed", err=True)
    for note in result.notes:
        say(f"{result.name}: {note}", err=True)
    rows, shards = counted(result.rows_scored, "row"), counted(result.shards_scored, "shard")
    all_shards = counted(result.shards, "shard")
    if result.shards_scored or result.shards_missing:
        say(f"{result.name}: {rows} in {shards} scored in {result.seconds:,.1f} s; the dataset has {all_shards}")
    else:
        say(f"{result.name}: nothing to do: no shard lacks this score")
    for number in sorted(set(result.rows_without.values())):
        columns = [column for column, rows in result.rows_without.items() if rows == number]
        names = ", ".join(columns[:_SHOWN_COLUMNS]) + (", ..." if len(columns) > _SHOWN_COLUMNS else "")
        advice = ": check the settings and the inputs of the score" if number == result.rows_scored else ""
        say(f"{names}: no value for {number:,} of these rows (no input, or no finite result){advice}", err=True)
    if left_out := result.pictures_left_out:
        pictures = counted(sum(left_out.values()), "picture")
        names = ", ".join(list(left_out)[:_SHOWN_MANIFESTS]) + (", ..." if len(left_out) > _SHOWN_MANIFESTS else "")
        say(
            f"{pictures} could not be scored (missing, changed since the dataset was made, or not decodable), so the "
            f"columns are null for them. The number per shard is in columns/{result.name}/manifests: {names}",
            err=True,
        )
    if result.unfinished_shards:
        planned = counted(result.unfinished_shards, "planned shard")
        again = pairmill_command("score", result.output, result.name)
        say(f"{planned} not finished yet; once finished, run `{again}` again", err=True)
    if result.shards_missing:
        missing = counted(len(result.shards_missing), "shard")
        say(f"{missing} without the score: fix the cause, then run the same command again", err=True)
    else:
        say(f"columns: {', '.join(result.columns)}")
