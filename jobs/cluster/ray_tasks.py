"""Runs pure functions on Ray, for work on a whole dataset: select and export."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from pairmill.pipeline.select.tasks import OnPart, ignore_part

CALL_CPUS = 1.0
"""Logical CPUs of one call, which determine how many calls Ray runs at a time."""


class RayTasks:
    """`pairmill.pipeline.select.tasks.Tasks` on Ray. Results stay in the object store until they are fetched.

    If a worker dies, Ray repeats its call, because the functions are pure.
    """

    def __init__(self, on_part: OnPart = ignore_part, gpus_per_call: float = 0.0) -> None:
        """`gpus_per_call`: GPUs for each call, ignored if Ray has none."""
        resources = ray.cluster_resources()
        self.on_part = on_part
        self._gpus = gpus_per_call if resources.get("GPU") else 0.0
        self.memory_bytes = int(resources["object_store_memory"] // 3)

    def map(self, function: Callable[..., Any], calls: Iterable[Sequence[Any]]) -> list[Any]:
        """Start the calls. Returns references to their results; see Tasks."""
        remote = ray.remote(num_cpus=CALL_CPUS, num_gpus=self._gpus)(function)
        return [remote.remote(*call) for call in calls]

    def map_split(self, function: Callable[..., Any], calls: Iterable[Sequence[Any]], outputs: int) -> list[list[Any]]:
        """Start the calls. Returns references to their results; see Tasks."""
        remote = ray.remote(num_cpus=CALL_CPUS, num_returns=outputs)(function)
        return [remote.remote(*call) for call in calls]

    def get(self, handles: Sequence[Any]) -> Iterator[Any]:
        """Fetch the results. Raises whatever a call raised."""
        for number, handle in enumerate(handles, 1):
            try:
                yield ray.get(handle)
            except RayTaskError as error:
                raise error.cause from None
            self.on_part(number, len(handles))
