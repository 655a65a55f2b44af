"""What a command needs on another machine: our code, the job file, own rules and blocklists, in one small folder."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pairmill
from pairmill.jobs.cli.arguments import Job, job_of
from pairmill.jobs.job_file import JobError, parse_settings, s3_of
from pairmill.pipeline import rules
from pairmill.pipeline.common.storage import is_remote
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob, RulesConfig
from pairmill.schemas.s3 import secret_in

COMMANDS = ("build", "embed", "retry", "select", "export")
"""What may be submitted: the commands that take long."""

BLOCKLISTS = ("url_blocklist", "md5_blocklist", "sha256_blocklist")
"""Settings under `rules` that name a file."""

JOB_FILE = "job.yaml"


@dataclass(frozen=True)
class Shipment:
    """A folder to be the working directory there, and the command line that means the same in it."""

    folder: Path
    arguments: list[str]
    blocklists: dict[str, str]
    """Field -> the file's name in the folder."""
    places: list[str]
    """Every path that is read or written where the command runs."""
    has_models: bool
    """Whether there is something to encode."""

    def command(self, files: str = "") -> list[str]:
        """The command line there; `files`: what stands before the names of the folder's blocklists."""
        settings = [f"rules.{field}={files}{name}" for field, name in self.blocklists.items()]
        return [*self.arguments, *(part for each in (*settings, "run.address=auto") for part in ("--set", each))]

    @property
    def code(self) -> list[str]:
        """The folder of our package."""
        return [str(Path(pairmill.__path__[0]))]


@contextmanager
def packed(arguments: Sequence[str]) -> Iterator[Shipment]:
    """The command `arguments` (after `pairmill`), checked and packed.

    Raises JobError for what is wrong with the job itself, and for what would not be found there.
    """
    if not arguments or arguments[0] not in COMMANDS:
        raise JobError(f"submit takes one of {', '.join(COMMANDS)}, with its own arguments")
    parameters = _parsed(arguments)
    job = _checked(arguments[0], parameters)
    places = _places(parameters, job)
    for path in places:
        if not is_remote(path) and not Path(path.removeprefix("file://")).is_absolute():
            raise JobError(
                f"{path}: is a path in this machine's current folder; a cluster reads s3://..., or an absolute path "
                "that every node has"
            )
    with TemporaryDirectory(prefix="pairmill-submit-") as name:
        folder = Path(name)
        shipped = _with_job_file(arguments, parameters.get("job_file"), folder)
        rules_of_job = job.rules if isinstance(job, BuildJob) else RulesConfig()
        with custom_modules(rules_of_job.custom) as modules:
            if modules:
                shutil.copytree(modules, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        has_models = bool(parameters.get("add_model") or (isinstance(job, BuildJob) and job.models))
        yield Shipment(folder, shipped, dict(_copied_blocklists(rules_of_job, folder)), places, has_models)


def _parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """The command's parameters, by the command's own parser; a usage error is told here and not by the cluster."""
    import typer

    from pairmill.jobs.cli.main import app

    command = typer.main.get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
    context = command.make_context(f"pairmill {arguments[0]}", list(arguments[1:]))
    return dict(context.params)


def _checked(command: str, parameters: Mapping[str, Any]) -> Job | None:
    """The job; None for a command that takes an output folder and settings alone."""
    if command != "retry" and not parameters.get("add_model"):
        return job_of(command, parameters)
    s3_of(parse_settings(parameters["settings"] or []))
    for path in (parameters.get("output"), *(parameters.get("source") or [])):
        if wrong := secret_in(path or ""):
            raise JobError(f"the output folder: {wrong}")
    return None


def _places(parameters: Mapping[str, Any], job: Job | None) -> list[str]:
    """Every path that the command reads or writes and that does not travel along."""
    if job is None:
        return [path for path in (parameters.get("output"), *(parameters.get("source") or [])) if path]
    if isinstance(job, BuildJob):
        names = [name for model in job.models for name in (model.name, model.pretrained) if name]
        return [*job.source.paths, job.output, *(name for name in names if Path(name).exists())]
    return [job.dataset, job.output] if isinstance(job, ExportJob) else [job.dataset]


def _with_job_file(arguments: Sequence[str], job_file: str | None, folder: Path) -> list[str]:
    """The command line with the job file by its name in the folder, where it is copied to."""
    if job_file is None or is_remote(job_file):
        return list(arguments)
    shutil.copy(job_file, folder / JOB_FILE)
    changed = [f"--job={JOB_FILE}" if argument == f"--job={job_file}" else argument for argument in arguments]
    for number, argument in enumerate(changed[:-1]):
        if argument == "--job" and changed[number + 1] == job_file:
            changed[number + 1] = JOB_FILE
    return changed


def _copied_blocklists(rules_of_job: RulesConfig, folder: Path) -> Iterator[tuple[str, str]]:
    for field in BLOCKLISTS:
        path = getattr(rules_of_job, field)
        if path is None or is_remote(path):
            continue
        if not Path(path).is_file():
            raise JobError(f"rules.{field}: there is no file {path}")
        name = f"{field}.gz" if path.endswith(".gz") else f"{field}.txt"
        shutil.copy(path, folder / name)
        yield field, name


@contextmanager
def custom_modules(names: Sequence[str]) -> Iterator[Path | None]:
    """A folder that holds the modules of the user's own rules and nothing else; None where none lies here.

    With what they import from beside them, they lie in the current directory.
    """
    for name in names:
        try:
            rules.load_custom_rule(name, Path.cwd())
        except ValueError as error:
            raise JobError(str(error)) from None
    tops = {name.partition(".")[0] for name in tuple(sys.modules)} - {"pairmill"} if names else set()
    local = [path for top in sorted(tops) for path in (Path(f"{top}.py"), Path(top)) if _is_loaded_from(top, path)]
    if not local:
        yield None
        return
    with TemporaryDirectory(prefix="pairmill-rules-") as folder:
        for path in local:
            if path.is_dir():
                shutil.copytree(path, Path(folder, path.name))
            else:
                shutil.copy(path, folder)
        yield Path(folder)


def _is_loaded_from(top: str, path: Path) -> bool:
    """Whether the module `top` came from this file or folder of the current directory."""
    module = sys.modules.get(top)
    origin = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), None)
    return (
        bool(origin)
        and path.exists()
        and Path(str(origin)).absolute() in (path.absolute(), (path / "__init__.py").absolute())
    )
