"""Formats what commands print about an output folder: the funnel, the failures, and why a run stopped."""

from typing import TYPE_CHECKING

from pairmill.jobs.cli.terminal import say

if TYPE_CHECKING:
    from pairmill.jobs.results import BuildResult


def print_funnel(result: "BuildResult") -> None:
    """Print how many rows were rejected at each step, and why."""
    from pairmill.jobs.funnel import funnel
    from pairmill.pipeline.common.text import counted
    from pairmill.pipeline.source.describe import describe_passed_over

    rows = result.seen - result.parts - sum(result.passed_over.values())
    if line := describe_passed_over(result.seen, rows, result.parts, result.passed_over):
        say(line)
    if not result.rows_in:
        return
    if more := result.rows_in - result.input_rows:
        say(f"{counted(result.input_rows, 'input row')}, {more:,} more from lists of captions")
    say(funnel(result.rows_in, result.statuses, result.custom_rules))


def print_failures(result: "BuildResult") -> None:
    """Print one line per failed shard."""
    from pairmill.pipeline.common.text import shown_path

    for shard, error in result.failures.items():
        where = shown_path(f"{result.output}/failures/{shard:09d}.txt")
        say(f"shard {shard:09d} failed: {error} (full traceback: {where})", err=True)


def print_stopped(result: "BuildResult") -> None:
    """Print why the run stopped before it had tried all shards, if it did."""
    if result.stopped:
        say(f"pairmill: stopped: {result.stopped}", err=True)


def print_private_addresses(result: "BuildResult") -> None:
    """If private addresses were refused, print how many and how to allow them."""
    from pairmill.pipeline.common.text import counted

    if refused := result.statuses.get("address_refused"):
        say(
            f"{counted(refused, 'private address')} refused: status_detail in rejects/ says which. To allow a network "
            "that you trust, use a new output folder and --set 'fetch.allow_networks=[NETWORK]', such as [127.0.0.0/8]",
            err=True,
        )
