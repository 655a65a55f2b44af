"""The machines that run a job's shards: this one, with processes of our own, or those of a Ray cluster.

Starting Ray on one machine takes three seconds, and its services and libraries take CPU time and memory while a job
runs. So Ray is used only if the job names a cluster, or if the calling process uses Ray already.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pairmill.jobs.cluster.fork_server import ForkServer, end_server_ahead, fork_server
from pairmill.jobs.cluster.live import LiveWorkers
from pairmill.jobs.cluster.pools import SPARE_CPUS, Node, Pool, plan_pools
from pairmill.jobs.cluster.process_backend import ProcessBackend
from pairmill.jobs.cluster.ray_use import uses_ray
from pairmill.jobs.cluster.worker_backend import WorkerBackend
from pairmill.pipeline.encode.device import resolve_device
from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.errors import JobError

_PAYLOAD_SHARE = 0.3
"""Share of this machine's memory for payloads, which is also Ray's default for its object store."""


class Machines(Protocol):
    """Where the workers of a job run."""

    @property
    def payload_bytes(self) -> int:
        """Memory for payloads on all machines together."""

    def nodes(self) -> Sequence[Node]:
        """The machines."""

    def plan_pools(self, pipeline: Pipeline, num_shards: int, num_rows: int) -> dict[StageName, Pool]:
        """The pools for these shards. Raises PoolError if they do not fit."""

    def backend(self, pipeline: Pipeline, live: LiveWorkers) -> WorkerBackend:
        """What starts workers on them."""


@contextmanager
def open_machines(pipeline: Pipeline, modules: Path | None = None) -> Iterator[Machines]:
    """The machines for a pipeline, for the duration of the block. `modules`: a folder with the user's rule modules.
    Raises JobError."""
    if pipeline.job.run.address is None and not uses_ray():
        if not sys.executable:
            raise JobError("this Python does not know where its executable is; set sys.executable")
        with fork_server() as server:
            yield ThisMachine(pipeline, server, modules)
        return
    end_server_ahead()
    from pairmill.jobs.cluster.ray_machines import RayMachines  # importing ray takes a second
    from pairmill.jobs.cluster.session import ray_session

    with ray_session(pipeline.job.run, modules):
        yield RayMachines()


@dataclass(frozen=True)
class ThisMachine:
    """This machine, without Ray."""

    pipeline: Pipeline
    server: ForkServer
    modules: Path | None = None

    @property
    def payload_bytes(self) -> int:
        """Memory for payloads."""
        return int(memory_bytes() * _PAYLOAD_SHARE)

    def nodes(self) -> Sequence[Node]:
        """This machine. Imports torch if it has a GPU that the job can use."""
        return [Node(cpus=(os.cpu_count() or 1) + SPARE_CPUS, gpus=len(self._gpus()))]

    def plan_pools(self, pipeline: Pipeline, num_shards: int, num_rows: int) -> dict[StageName, Pool]:
        """The pools for these shards, which do not grow: no machine comes to help. Raises PoolError."""
        run = pipeline.job.run.model_copy(update={"max_download_actors": None, "max_encode_actors": None})
        fixed = replace(pipeline, job=pipeline.job.model_copy(update={"run": run}))
        return plan_pools(fixed, num_shards, num_rows, self.nodes())

    def backend(self, pipeline: Pipeline, live: LiveWorkers) -> WorkerBackend:
        """Workers as processes."""
        return ProcessBackend(pipeline, live, self.server, self.modules, self._gpus())

    def _gpus(self) -> Sequence[str]:
        """The values that CUDA_VISIBLE_DEVICES can have for a worker with one GPU."""
        if "encode" not in self.pipeline.names or resolve_device(self.pipeline.job.run) != "cuda":
            return []
        import torch

        visible = [gpu.strip() for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
        there = torch.cuda.device_count()
        return visible[:there] or [str(gpu) for gpu in range(there)]


def memory_bytes() -> int:
    """This machine's memory, or the limit of the container that this process runs in."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).is_file() else ""
        sizes += [int(text)] if text.isdigit() else []
    return min(sizes)
