"""Decides how the functions of a select job run: in a plain loop in this process, or distributed over a Ray cluster."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

T = TypeVar("T")


class Handle(Generic[T]):
    """Refers to the result of a call. Opaque: only `Tasks.get` or a later call turns it into the result.

    Only the type checker uses this type: a Ray handle is an ObjectRef, a local handle the result itself.
    """


class Tasks(Protocol):
    """Runs pure functions, possibly each call on a different machine, and passes their results to later calls.

    A handle that is itself an argument of a call (not nested inside one) is replaced by its result.
    """

    memory_bytes: int
    """Maximum total memory for the results of one round of calls."""
    on_part: "OnPart"
    """Reports progress, including that of long work outside calls."""

    def map(self, function: Callable[..., T], calls: Iterable[Sequence[Any]]) -> list[Handle[T]]:
        """Start one call per item; returns a handle per call, in order."""

    def map_split(
        self, function: Callable[..., Sequence[Any]], calls: Iterable[Sequence[Any]], outputs: int
    ) -> list[list[Handle[Any]]]:
        """Like `map`, for functions that return `outputs` values: returns one handle per value for each call."""

    def get(self, handles: Sequence[Handle[T]]) -> Iterator[T]:
        """The results, in order, one at a time. Raises whatever a call raised."""


OnPart = Callable[[int, int], None]
"""Receives the number of calls in a round that are done, and their total number."""


def ignore_part(done: int, total: int) -> None:
    """Do nothing: the default for callers that show no progress."""


class LocalTasks:
    """Runs every call immediately, in this process."""

    memory_bytes = 1 << 30

    def __init__(self, on_part: OnPart = ignore_part) -> None:
        self.on_part = on_part

    def map(self, function: Callable[..., T], calls: Iterable[Sequence[Any]]) -> list[Handle[T]]:
        """Run the calls. The handles are the results themselves."""
        return [cast(Handle[T], result) for result in self._results(function, calls)]

    def map_split(
        self, function: Callable[..., Sequence[Any]], calls: Iterable[Sequence[Any]], outputs: int
    ) -> list[list[Handle[Any]]]:
        """Run the calls. The handles are the results themselves."""
        return [list(result) for result in self._results(function, calls)]

    def get(self, handles: Sequence[Handle[T]]) -> Iterator[T]:
        """The handles, which are the results."""
        return (cast(T, handle) for handle in handles)

    def _results(self, function: Callable[..., T], calls: Iterable[Sequence[Any]]) -> Iterator[T]:
        every = list(calls)
        for number, call in enumerate(every, 1):
            yield function(*call)
            self.on_part(number, len(every))
