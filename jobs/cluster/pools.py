"""How many workers each stage gets, on which machines, and what they hold in memory. Nothing of Ray is touched."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.errors import PairmillError

DOWNLOAD_CPUS = 2
"""One download actor keeps two cores busy: its event loop and its decoding threads."""

DOWNLOAD_CALLS = 4
"""Shards at once in a download actor: nearly every shard of the web has a row that takes all of its time, so with fewer
the cores would wait for the slowest rows of each."""

SMALL_CPUS = 0.2
"""Logical CPUs of an actor that places no demand on where it runs. CPUs only place actors; threads do not heed them."""

SPARE_CPUS = 2
"""Logical ones beyond a machine's own, for a local Ray whose actors mostly wait."""

SOURCES: tuple[StageName, ...] = ("download", "load")

SMALL_PER_DOWNLOADS = 8
"""Download actors that one reader, and one committer, keeps up with."""

STORED_PICTURE_BYTES = 40_000
"""A picture of 512 px at quality 95, as it crosses between actors."""

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""Ray gives it to every node that has accelerators."""


class PoolError(PairmillError, RuntimeError):
    """The machines cannot hold the pools that the job asks for; the message says what to change."""


@dataclass(frozen=True)
class Node:
    """One machine, as Ray sees it."""

    cpus: float
    gpus: float = 0.0
    accelerator: str | None = None


@dataclass(frozen=True)
class Pool:
    """One stage's workers: how many, logical CPUs and GPUs of each, and calls that run at once in each."""

    actors: int
    cpus: float
    gpus: float = 0.0
    calls: int = 1
    max_actors: int = 0
    """More than `actors`: as many as a cluster that grows may give, while shards wait."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray's label selector: where they may run."""


def plan_pools(pipeline: Pipeline, num_shards: int, nodes: Sequence[Node]) -> dict[StageName, Pool]:
    """Pool sizes from the job, else from the machines. GPU machines only encode where there are others.

    Raises PoolError.
    """
    run, names, gpus = pipeline.job.run, pipeline.names, int(sum(node.gpus for node in nodes))
    on_gpu = "encode" in names and run.device != "cpu" and gpus > 0
    if run.device == "cuda" and not gpus and "encode" in names:
        raise PoolError("run.device is cuda, but Ray has no GPU; use run.device=cpu, or a cluster with GPUs")
    encode = min(run.encode_actors or (gpus if on_gpu else 1), max(num_shards, 1))
    if on_gpu and encode > gpus and not run.max_encode_actors:
        raise PoolError(f"run.encode_actors is {encode}, but Ray has {gpus} GPUs, and each encoder takes one")
    others = [node for node in nodes if node.cpus and not node.gpus]  # a head node often has no CPUs to give
    apart = on_gpu and bool(others)
    cpus = sum(node.cpus for node in (others if apart else nodes))
    labels = _not_on(node.accelerator for node in nodes if node.gpus) if apart else {}
    download = run.download_actors or max(1, int(cpus - DOWNLOAD_CPUS) // DOWNLOAD_CPUS)
    small = -(-max(download, run.max_download_actors or 0) // SMALL_PER_DOWNLOADS)
    pools: dict[StageName, Pool] = {
        "read": Pool(small, SMALL_CPUS, labels=labels),
        "load": Pool(encode, SMALL_CPUS, max_actors=run.max_encode_actors or 0, labels=labels),
        "encode": Pool(encode, SMALL_CPUS, gpus=1.0 if on_gpu else 0.0, max_actors=run.max_encode_actors or 0),
        "commit": Pool(small, SMALL_CPUS, labels=labels),
    }
    left = cpus - sum(pool.actors * pool.cpus for name, pool in pools.items() if name in names)
    if left < (download * SMALL_CPUS if "download" in names else 0):
        raise PoolError(
            f"Ray has {cpus:g} CPUs, too few for {download} download and {encode} encode actors: lower "
            "run.download_actors or run.encode_actors, or give Ray two CPUs or more"
        )
    largest = max(node.cpus for node in (others if apart else nodes))
    each = min(float(DOWNLOAD_CPUS), int(10 * left / download) / 10, largest)
    calls = 1 if pipeline.is_isolated else DOWNLOAD_CALLS
    pools["download"] = Pool(download, each, calls=calls, max_actors=run.max_download_actors or 0, labels=labels)
    most = 1 if pipeline.is_isolated else num_shards
    return {
        name: replace(pools[name], actors=min(pools[name].actors, most), max_actors=min(pools[name].max_actors, most))
        for name in names
    }


def _not_on(accelerators: Iterable[str | None]) -> dict[str, str]:
    known = sorted({name for name in accelerators if name})
    return {ACCELERATOR_LABEL: f"!in({', '.join(known)})"} if known else {}


def source_of(names: Iterable[StageName]) -> StageName:
    """The stage that brings the pictures in."""
    there = set(names)
    return next((name for name in SOURCES if name in there), "read")


def shards_in_flight(pipeline: Pipeline, pools: Mapping[StageName, Pool], sources: int) -> int:
    """How many may be between read and commit, where `sources` workers bring them in."""
    if pipeline.is_isolated:
        return 1
    return pipeline.job.run.shards_in_flight or 2 * sources * pools[source_of(pools)].calls + 4
