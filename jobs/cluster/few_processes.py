"""Keeps a local Ray instance from starting processes that only clusters use."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from ray._private.node import Node

# The API server serves the dashboard, job submission and `ray list`; the monitor starts machines; the log monitor
# prints the output of workers, which `log_to_driver=False` discards.
_NAMES = ("start_api_server", "start_monitor", "start_log_monitor")
_UNUSED = {name: method for name, method in vars(Node).items() if name in _NAMES}

_one_at_a_time = Lock()


@contextmanager
def few_processes() -> Iterator[None]:
    """Within the block, Ray starts without these processes, which takes less time (decision 027).

    Ray has no options for this, hence its private names. If a version of Ray has no such method, the process starts.
    """
    with _one_at_a_time:
        for name in _UNUSED:
            setattr(Node, name, _start_nothing)
        try:
            yield
        finally:
            for name, method in _UNUSED.items():
                setattr(Node, name, method)


def _start_nothing(_node: Node, **_options: object) -> None:
    """Takes the place of a method of Ray's `Node`."""
