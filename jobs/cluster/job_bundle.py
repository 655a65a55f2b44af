"""What a command needs on another machine: our code, the job file, own rules and blocklists, in one small folder."""

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
from pairmill.schemas.jobs import RulesConfig

BLOCKLISTS = ("url_blocklist", "md5_blocklist", "sha256_blocklist")
"""Settings under `rules` that name a file."""

JOB_FILE = "job.yaml"


@dataclass(frozen=True)
class Command:
    """A command line whose job has been checked, to be run elsewhere."""

    arguments: list[str]
    """After `pairmill`."""
    job_file: str | None
    rules: RulesConfig
    uris: list[str]
    """Everything that it reads or writes where it runs."""
    has_models: bool
    """Whether there is something to encode."""


@dataclass(frozen=True)
class JobBundle:
    """A folder to be the working directory there, and the command line that means the same in it."""

    folder: Path
    arguments: list[str]
    blocklists: dict[str, str]
    """Field -> the file's name in the folder."""
    uris: list[str]
    has_models: bool

    def command(self, files: str = "") -> list[str]:
        """The command line there; `files`: what stands before the names of the folder's blocklists."""
        settings = [f"rules.{field}={files}{name}" for field, name in self.blocklists.items()]
        return [*self.arguments, *(part for each in (*settings, "run.address=auto") for part in ("--set", each))]

    @property
    def code(self) -> list[str]:
        """The folder of our package."""
        return [str(resources.files("pairmill"))]


@contextmanager
def bundled(command: Command) -> Iterator[JobBundle]:
    """The command, with all that must travel, in a temporary folder.

    Raises JobError for what would not be found on the cluster.
    """
    for uri in command.uris:
        if not is_remote(uri) and not Path(uri.removeprefix("file://")).is_absolute():
            raise JobError(
                f"{uri}: is a path in this machine's current folder; a cluster reads s3://..., or an absolute path "
                "that every node has"
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
