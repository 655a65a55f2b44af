"""Bundles what a command needs on another machine: pairmill's code, the job file, custom rules and blocklists."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from pairmill.pipeline import rules
from pairmill.pipeline.common.files import is_remote
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.rules import RulesConfig

BLOCKLISTS = ("url_blocklist", "md5_blocklist", "sha256_blocklist")
"""Settings under `rules` that name a file."""

JOB_FILE = "job.yaml"


@dataclass(frozen=True)
class Command:
    """A command line whose job has been checked, ready to run elsewhere."""

    arguments: list[str]
    """Arguments after `pairmill`."""
    job_file: str | None
    rules: RulesConfig
    uris: list[str]
    """All paths that the command reads or writes on the cluster."""
    has_models: bool
    """Whether there is anything to encode."""


@dataclass(frozen=True)
class JobBundle:
    """A folder to use as the working directory on the cluster, and the equivalent command line."""

    folder: Path
    arguments: list[str]
    blocklists: dict[str, str]
    """Field -> name of its file in the folder."""
    uris: list[str]
    has_models: bool

    def command(self, files: str = "") -> list[str]:
        """The command line on the cluster. `files`: prefix for the names of the blocklists."""
        settings = [f"rules.{field}={files}{name}" for field, name in self.blocklists.items()]
        return [*self.arguments, *(part for each in (*settings, "run.address=auto") for part in ("--set", each))]

    @property
    def code(self) -> list[str]:
        """The folder of the pairmill package, as a list."""
        return [str(resources.files("pairmill"))]


@contextmanager
def bundled(command: Command) -> Iterator[JobBundle]:
    """Put the command and everything it needs into a temporary folder.

    Raises JobError for paths and modules that the cluster could not find.
    """
    for uri in command.uris:
        if not is_remote(uri) and not Path(uri.removeprefix("file://")).is_absolute():
            base = "home" if uri.partition("/")[0] == "~" else "current"
            raise JobError(
                f"{uri}: is relative to the {base} folder of this machine; use s3://..., or an absolute path that "
                "exists on every node"
            )
    with TemporaryDirectory(prefix="pairmill-submit-") as name:
        folder = Path(name)
        arguments = _with_job_file(command.arguments, command.job_file, folder)
        with custom_modules(command.rules.custom) as modules:
            if modules:
                shutil.copytree(modules, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        blocklists = dict(_copied_blocklists(command.rules, folder))
        yield JobBundle(folder, arguments, blocklists, command.uris, command.has_models)


def _with_job_file(arguments: Sequence[str], job_file: str | None, folder: Path) -> list[str]:
    """Copy the job file into the folder. Returns the command line with the name of the copy."""
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
    """A temporary folder with the user's rule modules, or None if no module comes from the current directory.

    The folder also has the modules that those rules import from the current directory, and nothing else.
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
    """Whether the top-level module `top` was loaded from this file or folder in the current directory."""
    module = sys.modules.get(top)
    origin = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), None)
    return (
        bool(origin)
        and path.exists()
        and Path(str(origin)).absolute() in (path.absolute(), (path / "__init__.py").absolute())
    )
