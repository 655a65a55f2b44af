"""A whole command line, parsed and checked by the command's own parser: what `submit` runs elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from pairmill.jobs.cli.arguments import Job, job_of
from pairmill.jobs.cluster.job_bundle import Command
from pairmill.jobs.job_file import parse_settings, s3_of
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob, RulesConfig
from pairmill.schemas.s3 import secret_in

COMMANDS = ("build", "embed", "retry", "select", "export")
"""What may be submitted: the commands that take long."""


def parse_command(group: TyperGroup, arguments: Sequence[str]) -> Command:
    """`arguments` (after `pairmill`) as a checked Command. Raises JobError, and click's errors of usage."""
    if not arguments or arguments[0] not in COMMANDS:
        raise JobError(f"submit takes one of {', '.join(COMMANDS)}, with its own arguments")
    command = group.commands[arguments[0]]
    parameters: dict[str, Any] = dict(command.make_context(f"pairmill {arguments[0]}", list(arguments[1:])).params)
    job = _checked(arguments[0], parameters)
    return Command(
        arguments=list(arguments),
        job_file=parameters.get("job_file"),
        rules=job.rules if isinstance(job, BuildJob) else RulesConfig(),
        uris=_uris(parameters, job),
        has_models=bool(parameters.get("add_model") or (isinstance(job, BuildJob) and job.models)),
    )


def _checked(command: str, parameters: Mapping[str, Any]) -> Job | None:
    """The job; None for a command that takes an output folder and settings alone."""
    if command != "retry" and not parameters.get("add_model"):
        return job_of(command, parameters)
    s3_of(parse_settings(parameters["settings"] or []))
    for uri in (parameters.get("output"), *(parameters.get("source") or [])):
        if wrong := secret_in(uri or ""):
            raise JobError(f"the output folder: {wrong}")
    return None


def _uris(parameters: Mapping[str, Any], job: Job | None) -> list[str]:
    """Everything that the command reads or writes and that does not travel along."""
    if job is None:
        return [uri for uri in (parameters.get("output"), *(parameters.get("source") or [])) if uri]
    if isinstance(job, BuildJob):
        names = [name for model in job.models for name in (model.name, model.pretrained) if name]
        return [*job.source.paths, job.output, *(name for name in names if Path(name).exists())]
    return [job.dataset, job.output] if isinstance(job, ExportJob) else [job.dataset]
