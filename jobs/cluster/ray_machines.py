"""The machines of the Ray cluster that this process has joined."""

from collections.abc import Sequence

import ray

from pairmill.jobs.cluster.live import LiveWorkers
from pairmill.jobs.cluster.pools import Node, Pool, plan_pools
from pairmill.jobs.cluster.ray_backend import RayBackend
from pairmill.jobs.cluster.session import cluster_nodes
from pairmill.jobs.cluster.worker_backend import WorkerBackend
from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName


class RayMachines:
    """The machines of a Ray cluster."""

    @property
    def payload_bytes(self) -> int:
        """Memory of the object stores."""
        return int(ray.cluster_resources().get("object_store_memory", 0))

    def nodes(self) -> Sequence[Node]:
        """The machines, as Ray sees them."""
        return cluster_nodes()

    def plan_pools(self, pipeline: Pipeline, num_shards: int, num_rows: int) -> dict[StageName, Pool]:
        """The pools for these shards. Raises PoolError."""
        return plan_pools(pipeline, num_shards, num_rows, self.nodes())

    def backend(self, pipeline: Pipeline, live: LiveWorkers) -> WorkerBackend:
        """Workers as actors."""
        return RayBackend(pipeline, live)
