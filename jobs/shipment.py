"""What a command needs on another machine: our code, the job file, own rules and blocklists, in one small folder."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jobs
import pipeline
import schemas
from jobs.config import JobError, job_values
from pipeline import rules
from pipeline.storage import is_remote

COMMANDS = ("build", "embed", "retry", "select", "export")
"""What may be submitted: the commands that take long."""

BLOCKLISTS = ("url_blocklist", "md5_blocklist", "sha256_blocklist")
"""Settings under `rules` that name a file."""

JOB_FILE = "job.yaml"
_OURS = ("jobs", "pipeline", "schemas")


@dataclass(frozen=True)
class Shipment:
    """A folder to be the working directory there, and the command line that means the same in it."""

    folder: Path
    arguments: list[str]

    @property
    def code(self) -> list[str]:
        """The folders of our packages."""
        return [str(Path(package.__path__[0])) for package in (jobs, pipeline, schemas)]


@contextmanager
def packed(arguments: Sequence[str]) -> Iterator[Shipment]:
    """The command `arguments` (after `pairmill`), packed. Raises JobError for what would not be found there."""
    if not arguments or arguments[0] not in COMMANDS:
        raise JobError(f"submit takes one of {', '.join(COMMANDS)}, with its own arguments")
    parameters = _parsed(arguments)
    values = job_values(parameters.get("job_file"), parameters.get("settings") or [])
    for path in _places(parameters, values):
        if not is_remote(path) and not Path(path).is_absolute():
            raise JobError(
                f"{path}: is a path in this machine's current folder; a cluster reads s3://..., or an absolute path "
                "that every node has"
            )
    with TemporaryDirectory(prefix="pairmill-submit-") as name:
        folder, shipped = Path(name), _with_job_file(arguments, parameters.get("job_file"))
        if job_file := parameters.get("job_file"):
            shutil.copy(job_file, folder / JOB_FILE)
        own = values.get("rules") or {}
        for field in BLOCKLISTS:
            if (blocklist := own.get(field)) and not is_remote(blocklist):
                if not Path(blocklist).is_file():
                    raise JobError(f"rules.{field}: there is no file {blocklist}")
                shutil.copy(blocklist, folder / f"{field}.txt")
                shipped += ["--set", f"rules.{field}={field}.txt"]
        with custom_modules(own.get("custom") or []) as modules:
            if modules:
                shutil.copytree(modules, folder, dirs_exist_ok=True)
        yield Shipment(folder, shipped)


def _parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """The command's parameters, by the command's own parser; a usage error is told here and not by the cluster."""
    import typer

    from jobs.cli import app

    command = typer.main.get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
    context = command.make_context(f"pairmill {arguments[0]}", list(arguments[1:]))
    return dict(context.params)


def _places(parameters: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Every path that the command reads or writes."""
    source = values.get("source") if isinstance(values.get("source"), dict) else {}
    given = [parameters.get("source"), parameters.get("dataset"), parameters.get("output"), source.get("paths")]  # type: ignore[union-attr]
    given += [values.get("dataset"), values.get("output")]
    return [path for item in given for path in ([item] if isinstance(item, str) else item or [])]


def _with_job_file(arguments: Sequence[str], job_file: str | None) -> list[str]:
    """The job file by its name in the folder."""
    if job_file is None:
        return list(arguments)
    changed = [f"--job={JOB_FILE}" if argument == f"--job={job_file}" else argument for argument in arguments]
    for number, argument in enumerate(changed[:-1]):
        if argument == "--job" and changed[number + 1] == job_file:
            changed[number + 1] = JOB_FILE
    return changed


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
    tops = {name.partition(".")[0] for name in tuple(sys.modules)} - set(_OURS) if names else set()
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
