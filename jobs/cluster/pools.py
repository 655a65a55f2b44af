"""Plans how many workers each stage gets, on which machines, and how many shards are in flight. Does not use Ray."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.job.run import DOWNLOAD_CPUS, ROWS_WORTH_AN_ACTOR, cpus_per_download_actor

DOWNLOAD_CALLS = 4
"""Number of shards that a download actor works on at once. Nearly every shard has a row that takes the full timeout,
so with fewer shards, the cores would sit idle until the slowest rows are done."""

ENCODE_CALLS = 2
"""Number of shards that an encoder on a GPU works on at once. While one of them is unpacked, or waits for its first
pictures or for its columns, the model encodes the other."""

SMALL_CPUS = 0.2
"""Logical CPUs of an actor that may run anywhere. Ray only uses CPUs to place actors; it does not limit threads."""

SPARE_CPUS = 2
"""CPUs for readers, committers and encoders. This machine counts as having as many more: these workers mostly wait."""

SOURCES: tuple[StageName, ...] = ("download", "load")

SMALL_PER_DOWNLOADS = 8
"""Number of download actors that one reader and one committer can keep up with."""

STORED_PICTURE_BYTES = 40_000
"""Typical size of a stored picture: 512 px at quality 95."""

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The label that Ray sets on every node with an accelerator."""


class PoolError(PairmillError, RuntimeError):
    """The machines cannot run the pools that the job asks for; the message says what to change."""


@dataclass(frozen=True)
class Node:
    """One machine, as Ray sees it, or this one."""

    cpus: float
    gpus: float = 0.0
    accelerator: str | None = None


@dataclass(frozen=True)
class Pool:
    """The workers of one stage: their number, and the logical CPUs, GPUs and concurrent calls of each."""

    actors: int
    cpus: float
    gpus: float = 0.0
    calls: int = 1
    max_actors: int = 0
    """If more than `actors`, the pool grows up to this size while shards wait."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray label selector for the nodes they may run on."""


@dataclass(frozen=True)
class _Machines:
    """The machines for encoders and for all other stages. They are separate if only some machines have GPUs."""

    encoding: Sequence[Node]
    others: Sequence[Node]
    on_gpu: bool
    on_cpu: bool
    """Whether encoders share the CPUs with all other stages."""

    @classmethod
    def of(cls, pipeline: Pipeline, nodes: Sequence[Node]) -> "_Machines":
        """Raises PoolError if the job requires a GPU and there is none."""
        encodes, device = "encode" in pipeline.names, pipeline.job.run.device
        with_gpus = [node for node in nodes if node.gpus]
        if encodes and device == "cuda" and not with_gpus:
            raise PoolError("run.device is cuda, but no machine has a GPU; use run.device=cpu, or a cluster with GPUs")
        on_gpu = encodes and device != "cpu" and bool(with_gpus)
        without = [node for node in nodes if node.cpus and not node.gpus]  # head nodes often offer no CPUs
        others = without if on_gpu and without else nodes
        return cls(with_gpus if on_gpu else nodes, others, on_gpu, encodes and not on_gpu)

    @property
    def apart(self) -> bool:
        """Whether the machines with GPUs only encode."""
        return self.on_gpu and self.others is not self.encoding and not any(node.gpus for node in self.others)

    @property
    def cpus(self) -> float:
        """CPUs for all stages, except encoders on separate machines."""
        return sum(node.cpus for node in self.others)

    @property
    def download_actors(self) -> int:
        """Number of download actors that keep all cores busy, except those that the other stages need."""
        cpus = cpus_per_download_actor(beside_models=self.on_cpu)
        fit = sum(int((node.cpus - 2 * SMALL_CPUS) / cpus) for node in self.others)  # beside a reader and a committer
        return max(1, min(fit, int((self.cpus - SPARE_CPUS) / cpus)))

    @property
    def labels(self) -> dict[str, str]:
        """Ray label selector for all stages except encode."""
        known = sorted({node.accelerator for node in self.encoding if node.gpus and node.accelerator})
        return {ACCELERATOR_LABEL: f"!in({', '.join(known)})"} if self.apart and known else {}


def plan_pools(pipeline: Pipeline, num_shards: int, num_rows: int, nodes: Sequence[Node]) -> dict[StageName, Pool]:
    """Size the pools as the job says, otherwise by the rows and the machines. If some machines have no GPU, the others
    only encode.

    `num_rows`: the rows of these shards in the input, of which `retry` downloads only some. Raises PoolError if the
    pools do not fit.
    """
    run, machines = pipeline.job.run, _Machines.of(pipeline, nodes)
    encode = _encode_pool(pipeline, machines, num_shards)
    worthwhile = max(1, num_rows // ROWS_WORTH_AN_ACTOR)
    downloads = run.download_actors or min(machines.download_actors, worthwhile)
    small = -(-max(downloads, run.max_download_actors or 0) // SMALL_PER_DOWNLOADS)
    pools: dict[StageName, Pool] = {
        "read": Pool(small, SMALL_CPUS, labels=machines.labels),
        "load": Pool(encode.actors, SMALL_CPUS, max_actors=encode.max_actors, labels=machines.labels),
        "encode": encode,
        "commit": Pool(small, SMALL_CPUS, labels=machines.labels),
    }
    if "download" in pipeline.names:
        pools["download"] = _download_pool(pipeline, machines, downloads, pools)
    else:
        _check_fit(machines, pools, pipeline.names)
    most = 1 if pipeline.is_isolated else num_shards
    return {
        name: replace(pools[name], actors=min(pools[name].actors, most), max_actors=min(pools[name].max_actors, most))
        for name in pipeline.names
    }


def _encode_pool(pipeline: Pipeline, machines: _Machines, num_shards: int) -> Pool:
    """One encoder per GPU or fraction of a GPU, or one on the CPU. It requests the CPUs that its threads keep busy."""
    run = pipeline.job.run
    most_actors, largest = run.max_encode_actors or 0, max(node.cpus for node in machines.encoding)
    if (run.encode_threads or 0) > largest:
        raise PoolError(f"run.encode_threads is {run.encode_threads}, but no machine has more than {largest:g} CPUs")
    if not machines.on_gpu:
        actors = min(run.encode_actors or 1, max(num_shards, 1))
        return Pool(actors, float(run.encode_threads or SMALL_CPUS), max_actors=most_actors)
    share = run.gpus_per_encoder
    there = sum(_encoders(node, share) for node in machines.encoding)
    if not there:
        raise PoolError(f"run.gpus_per_encoder is {share:g}, but no machine has that many GPUs")
    actors = min(run.encode_actors or there, max(num_shards, 1))
    if actors > there and not most_actors:
        gpus = sum(node.gpus for node in machines.encoding)
        raise PoolError(f"run.encode_actors is {actors}, but there are {gpus:g} GPUs, and each encoder takes {share:g}")
    calls = 1 if pipeline.is_isolated else ENCODE_CALLS
    cpus = float(run.encode_threads or SMALL_CPUS)
    if machines.apart and not run.encode_threads:  # nothing else runs there, so all cores can decode
        cpus = min(int(10 * node.cpus / max(_encoders(node, share), 1)) / 10 for node in machines.encoding)
    return Pool(actors, cpus, gpus=share, calls=calls, max_actors=most_actors)


def _encoders(node: Node, share: float) -> int:
    """How many encoders fit on a machine that each take a share of one GPU, or several whole ones."""
    return int(node.gpus) * int(1 / share) if share < 1 else int(node.gpus / share)


def _download_pool(pipeline: Pipeline, machines: _Machines, downloads: int, pools: Mapping[StageName, Pool]) -> Pool:
    """The download pool, with a CPU per actor, or less if the other stages leave less."""
    left = _check_fit(machines, pools, pipeline.names, downloads * SMALL_CPUS)
    each = min(DOWNLOAD_CPUS, int(10 * left / downloads) / 10, max(node.cpus for node in machines.others))
    calls = 1 if pipeline.is_isolated else DOWNLOAD_CALLS
    most_actors = pipeline.job.run.max_download_actors or 0
    return Pool(downloads, each, calls=calls, max_actors=most_actors, labels=machines.labels)


def _check_fit(
    machines: _Machines, pools: Mapping[StageName, Pool], names: Iterable[StageName], needed: float = 0.0
) -> float:
    """The CPUs that these pools leave free. Raises PoolError if that is less than `needed`."""
    shared = [pools[name] for name in names if name in pools and not (name == "encode" and machines.apart)]
    left = machines.cpus - sum(pool.actors * pool.cpus for pool in shared)
    if left < needed:
        raise PoolError(
            f"there are {machines.cpus:g} CPUs, too few for these pools: lower run.download_actors, run.encode_actors "
            "or run.encode_threads, or use at least two CPUs"
        )
    return left


def source_of(names: Iterable[StageName]) -> StageName:
    """The stage that brings in the pictures."""
    there = set(names)
    return next((name for name in SOURCES if name in there), "read")


def shards_in_flight(pipeline: Pipeline, pools: Mapping[StageName, Pool], sources: int) -> int:
    """The maximum number of shards between read and commit with `sources` workers in the source stage."""
    if pipeline.is_isolated:
        return 1
    return pipeline.job.run.shards_in_flight or 2 * sources * pools[source_of(pools)].calls + 4
