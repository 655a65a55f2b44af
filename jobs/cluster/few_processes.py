"""Keeps a local Ray instance from starting processes that only clusters use."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray._private.node import Node

# The API server serves the dashboard, job submission and `ray list`; the monitor starts machines; the log monitor
# prints the output of workers, which `log_to_driver=False` discards.
_UNUSED = ("start_api_server", "start_monitor", "start_log_monitor")


@contextmanager
def few_processes() -> Iterator[None]:
    """Within the block, Ray starts without them, which takes less time (decision 027).

    Ray has no options for this, hence its private names. A version of Ray without one of them starts as usual.
    """
    originals = {name: getattr(Node, name) for name in _UNUSED if hasattr(Node, name)}
    for name in originals:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Node, name, original)


def _start_nothing(_node: Node, **_options: object) -> None:
    """Takes the place of a method of Ray's `Node`."""
