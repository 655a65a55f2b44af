"""`pairmill status` and `verify`: read an output folder without changing it."""

from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.options import Json, Output, S3Settings
from pairmill.jobs.cli.results import print_failures, print_funnel
from pairmill.jobs.cli.terminal import errors, open_store, print_json, progress, say

if TYPE_CHECKING:
    from pairmill.jobs.upkeep import Upkeep
    from pairmill.pipeline.check.report import VerifyReport
    from pairmill.pipeline.common.storage import Store


def status(
    output: Output,
    follow: Annotated[bool, typer.Option("--watch", help="Keep watching until all shards are done.")] = False,
    every_s: Annotated[
        float, typer.Option("--every", metavar="SECONDS", help="Time between checks.", min=0.1, max=86_400)
    ] = 5.0,
    settings: S3Settings = None,
    as_json: Json = False,
) -> None:
    """Show a job's progress.

    Counts shards, and rows by status. Works on any machine that can read OUT.
    """
    from pairmill.pipeline.common.text import counted, shown_path

    with errors():
        from pairmill.jobs.cli.watch import watch
        from pairmill.jobs.results import current
        from pairmill.jobs.upkeep import Upkeep

        with progress("The job itself, if one is running, continues.") as listener:
            store = open_store(output, settings)
            result = watch(store, listener, every_s) if follow else current(store)
    done = result.shards - len(result.shards_missing)
    shards, rows = counted(result.shards, "shard"), counted(result.input_rows, "row")
    say(f"{shown_path(result.output)}: {done:,} of {shards}, {rows} done")
    print_funnel(result)
    print_failures(result)
    with errors():
        _print_added(store)
        upkeep = Upkeep.of(store)
    _print_upkeep(upkeep, output, result.statuses.get("withdrawn", 0))
    if as_json:
        print_json({**result.as_dict(), **upkeep.as_dict()})


def _print_added(store: "Store") -> None:
    """Print the models and scores that were added, and which of them some shards lack."""
    from pairmill.pipeline.columns.added_columns import added_columns
    from pairmill.pipeline.dataset.manifests import committed

    added = added_columns(store, committed(store))
    if added.names:
        say(f"added: {', '.join(added.names)}")
    for each in added.incomplete:
        say(f"added: {each.name}, which some shards lack; run: {each.command}")


def _print_upkeep(upkeep: "Upkeep", output: str, withdrawn: int) -> None:
    """Print the number of shards per generation and of withdrawn rows, if there are any."""
    from pairmill.pipeline.common.text import counted, pairmill_command

    if max(upkeep.generations, default=0):
        shards = ", ".join(f"{shards:,} at {number:,}" for number, shards in upkeep.generations.items())
        say(f"generations of the shards: {shards}")
    if upkeep.superseded and not upkeep.unfinished_purges:  # a purge deletes them itself
        older = counted(upkeep.superseded, "superseded generation")
        say(f"{older}, which `{pairmill_command('gc', output)}` deletes")
    if upkeep.requests:
        say(f"{counted(withdrawn, 'row')} withdrawn by {counted(upkeep.requests, 'request')}")
    if upkeep.unfinished_purges:
        say(f"a purge is running or was interrupted; to finish it: {pairmill_command('purge', output)}")


def verify(
    output: Output,
    rescore: Annotated[
        int, typer.Option(metavar="N", help="Pairs to score again, spread over the shards; 0 for none.", min=0)
    ] = 64,
    purged: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Search all of OUT for these uids, URLs, hosts or hashes instead."),
    ] = None,
    settings: S3Settings = None,
    as_json: Json = False,
) -> None:
    """Check that a dataset is intact.

    Checks the counts, checksums, and tar and Parquet keys of every shard and the files beside the shards, such as
    subsets and search indexes, and recomputes a sample of the scores. With --purged, checks that nothing is left of
    purged rows.
    """
    if purged is not None:
        _verify_purged(output, purged, settings, as_json)
        return

    with errors():
        from pairmill.pipeline.check.verify import verify as run_verify

        with progress("Nothing was changed.") as listener:
            report = run_verify(open_store(output, settings), rescore, listener.step)
    _print_report(report, output)
    if as_json:
        print_json(report.as_dict())
    if not report.holds:
        raise typer.Exit(1)


def _verify_purged(output: str, purged: str, settings: list[str] | None, as_json: bool) -> None:
    from pairmill.pipeline.common.text import counted

    with errors():
        from pairmill.jobs.purge import verify_purged

        with progress("Nothing was changed.") as listener:
            report = verify_purged(open_store(output, settings), purged, on_step=listener.step)
    for line in report.lines():
        say(line)
    for found in report.found:
        say(f"found: {found}", err=True)
    for skipped in report.unsearched:
        say(f"not searched: {skipped}", err=True)
    problems = f"{counted(len(report.found), 'finding')}, {len(report.unsearched):,} not searched"
    say("nothing is left of these values" if report.holds else problems)
    if as_json:
        print_json(report.as_dict())
    if not report.holds:
        raise typer.Exit(1)


def _print_report(report: "VerifyReport", output: str) -> None:
    from pairmill.pipeline.common.text import counted, shown_path

    counts = (("shard", report.shards), ("row", report.rows), ("pair", report.pairs), ("picture", report.pictures))
    say(", ".join(counted(number, noun) for noun, number in counts))
    if report.rescored:
        most = f"difference at most {report.max_score_difference:.1e}"
        say(f"{counted(report.rescored, 'score')} recomputed, {most}")
    if report.scores_recomputed:
        say(f"{counted(report.scores_recomputed, 'row')} of added scores recomputed")
    if report.shards_missing:
        say(f"{counted(report.shards_missing, 'planned shard')} not done yet")
    for problem in report.problems:
        say(f"problem: {problem}", err=True)
    if report.damaged:
        names = " ".join(report.damaged[:20]) + (" ..." if len(report.damaged) > 20 else "")
        manifests = sum(name.startswith("manifests/") for name in report.damaged)
        say(
            f"To rebuild {counted(manifests, 'damaged shard')}, move these files out of {shown_path(output)}, then run "
            f"the same build or embed again, and score or --add-model for files in columns/: {names}",
            err=True,
        )
    say("everything committed is intact" if report.holds else counted(len(report.problems), "problem"))
