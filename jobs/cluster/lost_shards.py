"""The only place that decides what happens to a shard that failed or was lost when its worker died.

A stage that raises fails only its shard. Shards lost with a worker run once more. If they are lost again, each runs
alone and isolated: a child process decodes the pictures and calls the user's rules, so a crash loses only one row. A
shard that kills its worker even then counts as failed.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.jobs.cluster.worker_backend import Report
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.text import counted, last_line
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.manifest import ShardManifest

_FIRST_FAILURES = 3
"""Stop if a rule or a model fails this many shards before any succeeds, because it would fail all the others too."""

_WORKER_DIED = Failure(FailureKind.SHARD, "its worker process died three times", "its worker process died three times")

log = logging.getLogger(__name__)


class EngineError(PairmillError, RuntimeError):
    """The run cannot start or continue; the message says what to do."""


@dataclass(frozen=True)
class Outcome:
    """How a shard ended: with a manifest or a failure."""

    shard: int
    result: ShardManifest | Failure


Ended: TypeAlias = tuple[int, Report | None]
"""A shard and its report, which is None if the shard was lost with its worker."""


RunPass: TypeAlias = Callable[[pa.Table, bool], Iterator[Ended]]
"""Runs shards, isolated or not, and yields each as it ends."""


def outcomes(shards: pa.Table, run_pass: RunPass, max_in_a_row: int) -> Iterator[Outcome]:
    """Yield the outcome of every shard.

    Raises EngineError after `max_in_a_row` consecutive failures, or fewer until the first shard succeeds.
    """
    limit = _FailureLimit(max_in_a_row)
    for isolated in (False, False, True):
        lost = []
        for shard, report in run_pass(shards, isolated):
            if report is None and isolated:
                report = Report(failure=_WORKER_DIED)
            if report is None:
                lost.append(shard)
                continue
            result = report.failure or report.manifest
            assert result is not None  # every report from the scheduler has one of the two
            outcome = Outcome(shard, result)
            yield outcome
            limit.add(outcome)
        if not lost:
            return
        shards = shards.filter(pc.is_in(shards["shard"], value_set=pa.array(sorted(lost))))
        log.warning("%s lost when a worker died; running again", counted(len(lost), "shard"))


@dataclass
class _FailureLimit:
    """Counts consecutive failures, and stops the run after too many."""

    limit: int
    in_a_row: int = 0
    any_good: bool = False

    def add(self, outcome: Outcome) -> None:
        """Count one finished shard. Raises EngineError after too many consecutive failures."""
        failure = outcome.result
        if isinstance(failure, ShardManifest):
            self.in_a_row, self.any_good = 0, True
            return
        # A damaged input file says nothing about the other files, so it never stops the run.
        self.in_a_row += failure.kind is not FailureKind.INPUT
        will_fail_all = failure.kind is FailureKind.JOB and not self.any_good
        if self.in_a_row >= (_FIRST_FAILURES if will_fail_all else self.limit):
            line = last_line(failure.traceback)
            raise EngineError(f"{counted(self.in_a_row, 'shard')} in a row failed; the last error: {line}")
