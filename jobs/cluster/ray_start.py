"""Starts Ray without what it does by default for a script in the current directory. Ray has no options for this, hence
its private names; a test fails if one of them no longer works."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType

from ray._private import ray_constants, worker
from ray.job_config import JobConfig


def job_config() -> JobConfig:
    """A job whose workers do not import from the current directory.

    By default, Ray puts it at the front of its workers' sys.path, where a user's secrets.py or datasets/ would shadow
    the real module, but only in workers. Ray does not do this for its remote clients, or if workers have a
    working_dir, but with an empty one the workers that Ray prestarts would go unused, which costs 2 s.
    """
    return JobConfig(_client_job=True)


def without_uv() -> AbstractContextManager[None]:
    """Within the block, `ray.init` does not upload the current directory for its workers if the process was started by
    `uv run`."""
    return _replaced(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", False)


def messages_on_stderr() -> AbstractContextManager[None]:
    """Within the block, Ray reports lost tasks on stderr. It would do so on stdout, which is for results."""
    print_to = worker.print_to_stdstream

    def print_to_stderr(data: Mapping[str, object], ignore_prefix: bool) -> None:
        print_to({**data, "is_err": True}, ignore_prefix)

    return _replaced(worker, "print_to_stdstream", print_to_stderr)


@contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
