"""Measures whether throughput grows in proportion to the number of nodes: runs the same build on 1, 2, 4 and 8 of them.

    python -m bench.nodes [--rounds 3]

Uses `ray.cluster_utils.Cluster` on one machine, with three CPUs and one download actor per simulated node. A loopback
server answers with small pictures after two seconds, and each node has 16 requests in flight. The rate is measured over
the middle three fifths of the shards, when every node has work.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.chaos import add_node, slow_web
from pairmill.jobs.build import build
from pairmill.jobs.progress import ProgressListener
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import ShardManifest

NODES = (1, 2, 4, 8)
SHARD_ROWS, SHARDS_PER_NODE, DELAY_S, REQUESTS = 16, 16, 2.0, 16


class Clock(ProgressListener):
    """A listener that records when shards were committed."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.rows: list[int] = []

    def committed(self, manifest: ShardManifest) -> None:
        self.times.append(time.perf_counter())
        self.rows.append(manifest.rows_in)

    def failed(self, shard: int, error: str) -> None:
        raise SystemExit(error)

    @property
    def rate(self) -> float:
        """Rows per second in the middle of the run, when every node has work."""
        first, last = len(self.times) // 5, 4 * len(self.times) // 5
        return sum(self.rows[first + 1 : last + 1]) / (self.times[last] - self.times[first])


def rate(nodes: int, folder: Path, web: str) -> float:
    """Rows per second on this many nodes."""
    import ray
    from ray.cluster_utils import Cluster

    rows = nodes * SHARDS_PER_NODE * SHARD_ROWS
    urls = [f"{web}/{number}.jpg" for number in range(rows)]
    source, output = folder / f"in{nodes}.parquet", folder / f"out{nodes}-{time.time_ns()}"
    pq.write_table(pa.table({"url": urls, "caption": urls}), source)
    head: dict[str, object] = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(nodes):
        add_node(cluster, num_cpus=3, object_store_memory=100_000_000)
    clock = Clock()
    values = {
        "source": {"paths": [str(source)]},
        "output": str(output),
        "shard_rows": SHARD_ROWS,
        "fetch": {"allow_networks": ["127.0.0.0/8"], "per_host_concurrency": REQUESTS},
        "run": {"address": cluster.address, "download_actors": nodes},
    }
    try:
        assert build(BuildJob.model_validate(values), clock).kept == rows
    finally:
        ray.shutdown()
        cluster.shutdown()
    return clock.rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[int, list[float]] = {nodes: [] for nodes in NODES}
    with tempfile.TemporaryDirectory() as folder, slow_web(DELAY_S) as web:
        for _ in range(options.rounds):
            for nodes in NODES:
                found[nodes].append(rate(nodes, Path(folder), web))
                print(f"{nodes} nodes: {found[nodes][-1]:.1f} rows/s", file=sys.stderr, flush=True)
    print("| nodes | rows/s, median (range) | scaling efficiency, median (range) |\n|---|---|---|")
    for nodes in NODES:
        shares = [many / one / nodes for many, one in zip(found[nodes], found[1], strict=True)]
        spread = f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        rates = found[nodes]
        print(f"| {nodes} | {statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f}) | {spread} |")


if __name__ == "__main__":
    main()
