"""The messages between the driver and its worker processes on this machine."""

from dataclasses import dataclass
from pathlib import Path

from pairmill.jobs.cluster.worker_backend import Report
from pairmill.pipeline.common.progress import WorkCounts
from pairmill.pipeline.stages.stage import StageSpec


@dataclass(frozen=True)
class Open:
    """To a new worker: the stage to build. It answers with Ready."""

    spec: StageSpec
    calls: int
    """Number of shards to work on at once."""
    modules: Path | None
    """A folder with the user's rule modules."""


@dataclass(frozen=True)
class Run:
    """To a worker: run a shard, whose payloads come with the message as files. It answers with Ended."""

    call: int


class Count:
    """To a worker: report the progress inside its shards. It answers with Counted."""


@dataclass(frozen=True)
class Ready:
    """From a worker that has built its stage, or failed to."""

    report: Report


@dataclass(frozen=True)
class Ended:
    """From a worker: a call has ended. The result, if there is one, comes with the message as a file."""

    call: int
    report: Report


@dataclass(frozen=True)
class Counted:
    """From a worker: its progress."""

    counts: WorkCounts
