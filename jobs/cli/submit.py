"""`pairmill submit` and `pairmill jobs`: run a command on a cluster, follow it and stop it."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.help import Command as ShownCommand
from pairmill.jobs.cli.help import Group, examples
from pairmill.jobs.cli.options import Json
from pairmill.jobs.cli.terminal import errors, exit_status, say, say_as_is, say_stopped

if TYPE_CHECKING:
    from pairmill.jobs.cluster.job_bundle import Command
    from pairmill.jobs.cluster.submit import Cluster

Address = Annotated[
    str,
    typer.Option(metavar="URL", envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard: http://HEAD:8265."),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Job id, as `pairmill jobs list` prints it.")]

jobs = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, follow and stop submitted jobs.",
    epilog=examples("pairmill jobs list", "pairmill jobs logs --follow raysubmit_1"),
)


def submit(
    context: typer.Context,
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard: http://HEAD:8265."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show its output and exit with its status.")] = False,
    kuberay: Annotated[
        bool, typer.Option("--kuberay", help="Print a RayJob manifest for Kubernetes instead, and submit nothing.")
    ] = False,
    image: Annotated[
        str, typer.Option(metavar="NAME", help="For --kuberay: the image built from jobs/cluster/Dockerfile.")
    ] = "pairmill:latest",
) -> None:
    """Run a command on a Ray cluster.

    Takes build, embed, retry, select, score, export or index with its own arguments.
    """
    with errors():
        if kuberay and wait:
            raise typer.BadParameter("--kuberay submits nothing, so there is nothing to wait for")
        command = _command(context)  # also prints the command's own --help
        if kuberay:
            from pairmill.jobs.cluster.kuberay import manifest

            say_as_is(manifest(command, image))
            return
        cluster = _cluster(address)
        job_id = cluster.submit(command)
        say(f"{job_id}: submitted; pairmill jobs logs --follow {job_id}", err=wait)
        if wait:
            sys.exit(_follow(cluster, job_id))


def list_jobs(address: Address, as_json: Json = False) -> None:
    """List pairmill's jobs, newest first."""
    with errors():
        found = _cluster(address).jobs()
    for job in found:
        say(f"{job.job_id}  {job.status:<10}{job.seconds:>10,.0f} s  {job.command}")
    if as_json:
        typer.echo(json.dumps([asdict(job) for job in found]))


def logs(
    job_id: JobId,
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", help="Follow until the job ends; then exit with its status.")
    ] = False,
) -> None:
    """Print the output of a job."""
    with errors():
        cluster = _cluster(address)
        if follow:
            sys.exit(_follow(cluster, job_id))
        say_as_is(cluster.logs(job_id))


def stop(job_id: JobId, address: Address) -> None:
    """Stop a job.

    Finished shards are kept; submit the same command again to resume.
    """
    with errors():
        cluster = _cluster(address)
        was_over = cluster.job(job_id).is_over
        job = cluster.stop(job_id)
    say(f"{job.job_id}: {'had already ended: ' if was_over else ''}{job.status}")


def status(job_id: JobId, address: Address, as_json: Json = False) -> None:
    """Show the state of a job.

    `pairmill status OUT` shows its progress.
    """
    with errors():
        job = _cluster(address).job(job_id)
    exit_code = "" if job.exit_code is None else f", exit status {job.exit_code}"
    say(f"{job.job_id}: {job.status}{exit_code}, {job.seconds:,.0f} s\n{job.command}")
    if as_json:
        typer.echo(json.dumps(asdict(job)))


for name, function, *lines in (
    ("list", list_jobs, "pairmill jobs list", "pairmill jobs list --address http://head:8265"),
    ("logs", logs, "pairmill jobs logs raysubmit_1", "pairmill jobs logs --follow raysubmit_1"),
    ("stop", stop, "pairmill jobs stop raysubmit_1", "pairmill jobs stop raysubmit_1 --address http://head:8265"),
    ("status", status, "pairmill jobs status raysubmit_1", "pairmill jobs status raysubmit_1 --json"),
):
    jobs.command(name, cls=ShownCommand, epilog=examples(*lines))(function)


def _command(context: typer.Context) -> "Command":
    """Parse the arguments after `submit` with the parser of the command that they name."""
    from typer.core import TyperGroup

    from pairmill.jobs.cli.command_line import parse_command

    group = context.find_root().command
    assert isinstance(group, TyperGroup)
    return parse_command(group, list(context.args))


def _cluster(address: str | None) -> "Cluster":
    from pairmill.jobs.cluster.submit import Cluster
    from pairmill.schemas.errors import JobError

    if not address:
        raise JobError("give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS")
    return Cluster(address)


def _follow(cluster: "Cluster", job_id: str) -> int:
    """Show the job's output until it ends. Returns its exit status."""
    try:
        job = cluster.follow(job_id, say_as_is)
    except KeyboardInterrupt as stop:
        say_stopped(f"\nThe job is still running: pairmill jobs logs --follow {job_id}, or pairmill jobs stop {job_id}")
        return exit_status(stop)
    if job.status != "SUCCEEDED":
        code = "" if job.exit_code is None else f" (exit status {job.exit_code})"
        say(f"{job_id}: {job.status}{code}", err=True)
    return job.exit_code if job.exit_code is not None else int(job.status != "SUCCEEDED")
