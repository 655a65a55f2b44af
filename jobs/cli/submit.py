"""`pairmill submit` and `pairmill jobs`: start a command on a cluster, follow it, stop it."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.terminal import INTERRUPTED, Json, errors

if TYPE_CHECKING:
    from pairmill.jobs.cluster.job_bundle import Command
    from pairmill.jobs.cluster.submit import Cluster

Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Of the cluster's dashboard: http://HEAD:8265.")
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="As `pairmill jobs list` prints it.")]

jobs = typer.Typer(no_args_is_help=True, help="The jobs that were submitted to a cluster.")


def submit(
    context: typer.Context,
    address: Annotated[
        str | None, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Of the cluster's dashboard: http://HEAD:8265.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show what it prints, and end as it ends.")] = False,
    kuberay: Annotated[
        bool, typer.Option("--kuberay", help="Print a RayJob manifest for Kubernetes instead, and submit nothing.")
    ] = False,
    image: Annotated[
        str, typer.Option(help="For --kuberay: the image that jobs/cluster/Dockerfile makes.")
    ] = "pairmill:latest",
) -> None:
    """Run build, embed, retry, select or export on a Ray cluster: pairmill submit --address URL build ARGUMENTS."""
    with errors():
        if kuberay and wait:
            raise typer.BadParameter("--kuberay submits nothing that could be waited for")
        command = _command(context)  # also prints the command's own --help
        if kuberay:
            from pairmill.jobs.cluster.kuberay import manifest

            typer.echo(manifest(command, image), nl=False)
            return
        cluster = _cluster(address)
        job_id = cluster.submit(command)
        typer.echo(f"{job_id}: submitted; pairmill jobs logs --follow {job_id}", err=wait)
        if wait:
            sys.exit(_follow(cluster, job_id))


def list_jobs(address: Address, as_json: Json = False) -> None:
    """pairmill's jobs on the cluster, the newest first."""
    with errors():
        found = _cluster(address).jobs()
    for job in found:
        typer.echo(f"{job.job_id}  {job.status:<10}{job.seconds:>10,.0f} s  {job.command}")
    if as_json:
        typer.echo(json.dumps([asdict(job) for job in found]))


def logs(
    job_id: JobId,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends; then end as it ended.")] = False,
) -> None:
    """What a job has printed."""
    with errors():
        cluster = _cluster(address)
        if follow:
            sys.exit(_follow(cluster, job_id))
        typer.echo(cluster.logs(job_id), nl=False)


def stop(job_id: JobId, address: Address) -> None:
    """End a job. What is committed stays; submitting the same command goes on from there."""
    with errors():
        cluster = _cluster(address)
        was_over = cluster.job(job_id).is_over
        job = cluster.stop(job_id)
    typer.echo(f"{job.job_id}: {'had ended before: ' if was_over else ''}{job.status}")


def status(job_id: JobId, address: Address, as_json: Json = False) -> None:
    """How a job is doing; `pairmill status OUT` says how far it is."""
    with errors():
        job = _cluster(address).job(job_id)
    exit_code = "" if job.exit_code is None else f", exit status {job.exit_code}"
    typer.echo(f"{job.job_id}: {job.status}{exit_code}, {job.seconds:,.0f} s\n{job.command}")
    if as_json:
        typer.echo(json.dumps(asdict(job)))


for name, function in (("list", list_jobs), ("logs", logs), ("stop", stop), ("status", status)):
    jobs.command(name)(function)


def _command(context: typer.Context) -> "Command":
    """What stands behind `submit`, by the parser of the command that it names."""
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
    """The job's exit status, once it has ended."""

    def show(text: str) -> None:
        typer.echo(text, nl=False)
        sys.stdout.flush()

    try:
        job = cluster.follow(job_id, show)
    except KeyboardInterrupt:
        typer.echo(f"\nThe job goes on: pairmill jobs logs --follow {job_id}, or pairmill jobs stop {job_id}", err=True)
        return INTERRUPTED
    if job.status != "SUCCEEDED":
        exit_status = "" if job.exit_code is None else f" (exit status {job.exit_code})"
        typer.echo(f"{job_id}: {job.status}{exit_status}", err=True)
    return job.exit_code if job.exit_code is not None else int(job.status != "SUCCEEDED")
