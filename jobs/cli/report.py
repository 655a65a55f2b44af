"""`pairmill report`, and the report at the end of `build` and `embed`."""

from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.options import Json, Output, S3Settings
from pairmill.jobs.cli.terminal import errors, exit_status, open_store, print_json, progress, say, say_stopped

if TYPE_CHECKING:
    from pairmill.pipeline.common.storage import Store

NoReport = Annotated[bool, typer.Option("--no-report", help="Do not write OUT/report.html at the end.")]


def report(
    output: Output,
    subset: Annotated[str | None, typer.Option(metavar="NAME", help="Report on this subset of OUT.")] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Another subset or output folder to compare it with.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="By default, OUT/report.html or OUT/report-NAME.html."),
    ] = None,
    settings: S3Settings = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page with pictures and plots.

    Shows what was lost and why, how scores are distributed, what other thresholds would keep, and pictures of all
    kinds of rows. The page opens offline, loads nothing and runs no script.
    """
    with errors():
        from pairmill.jobs.report import report as run_report
        from pairmill.pipeline.common.text import counted

        with progress("Nothing was written.") as listener:
            result = run_report(open_store(output, settings), subset, compare, out, on_step=listener.step)
    if result.rows_read < result.rows:
        say(f"sampled {result.rows_read:,} of {counted(result.rows, 'row')}", err=True)
    say(result.path)
    if as_json:
        print_json(result.as_dict())


def write_report(store: "Store") -> str | None:
    """Write the report at the end of a run, and print its path or why it was not written. Returns its path."""
    from pairmill.jobs.report import report_after_run
    from pairmill.pipeline.common.text import pairmill_command, shown_path

    try:
        path, problem = report_after_run(store)
    except KeyboardInterrupt as stop:
        again = pairmill_command("report", store.root)
        say_stopped(f"Stopped. The dataset is complete; only the report is missing: {again}")
        raise typer.Exit(exit_status(stop)) from None
    if path is None:
        say(f"pairmill: {problem}", err=True)
    else:
        say(f"report: {shown_path(path)}")
    return path
