"""Defines what the scheduler needs from the system that runs its workers: it starts, calls and stops them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from pairmill.jobs.cluster.pools import Pool
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.manifest import ShardManifest

WorkerHandle: TypeAlias = Any
Payload: TypeAlias = Any
"""A handle to data that stays on the cluster."""
Token: TypeAlias = Any
"""Identifies a start or a call in progress. Hashable."""


class WorkerDied(Exception):
    """The worker that ran the call is gone: its process or its machine died."""


class PayloadLost(Exception):
    """The data that the call needed is gone: the machine that stored it died, or memory ran out."""


@dataclass(frozen=True)
class Report:
    """What a worker reports after a call: a failure, the manifest (after the last stage), or where the result is."""

    failure: Failure | None = None
    manifest: ShardManifest | None = None
    node: str = ""
    """The machine of the worker, and so of its result."""
    num_bytes: int = 0
    """Size of the result."""

    @property
    def ends_shard(self) -> bool:
        """Whether no other stage follows for this shard."""
        return self.failure is not None or self.manifest is not None


class WorkerBackend(Protocol):
    """Starts, calls and stops workers."""

    def start(self, name: StageName, pool: Pool) -> tuple[WorkerHandle, Token]:
        """Start a worker. Returns it, and a token that is done once it is ready."""

    def call(self, worker: WorkerHandle, payloads: Sequence[Payload]) -> tuple[Token, Payload]:
        """Call a worker. Returns a token for the report, and the payload of the result."""

    def wait(self, timeout_s: float) -> list[Token]:
        """Tokens that are done and were not returned before: at least one, unless the time runs out."""

    def result(self, token: Token) -> Report:
        """The report of a call, or of a start, which names the worker's node. Raises WorkerDied or PayloadLost."""

    def stop(self, worker: WorkerHandle) -> None:
        """Stop a worker immediately, whatever it is doing."""

    def close(self) -> None:
        """Stop all workers, even one whose `start` was interrupted."""
