"""How the functions of a choice are run: here in a plain loop, on a cluster by the engine."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol


class Tasks(Protocol):
    """Runs pure functions, each call perhaps on another machine, and hands their results to later calls."""

    memory_bytes: int
    """What the results of one round of calls may take together."""

    def map(self, function: Callable[..., Any], calls: Iterable[Sequence[Any]], outputs: int = 1) -> list[Any]:
        """Start one call per item; returns handles in the order of the calls: one each, or `outputs` of them each.

        A handle may stand among the arguments of a later call, which then gets the result.
        """

    def get(self, handles: Sequence[Any]) -> Iterator[Any]:
        """The results, in order, one at a time."""


class LocalTasks:
    """Every call at once, in this process."""

    memory_bytes = 1 << 30

    def map(self, function: Callable[..., Any], calls: Iterable[Sequence[Any]], outputs: int = 1) -> list[Any]:
        """Handles are the results themselves."""
        results = [function(*call) for call in calls]
        return [list(result) for result in results] if outputs > 1 else results

    def get(self, handles: Sequence[Any]) -> Iterator[Any]:
        """As they are."""
        return iter(handles)
