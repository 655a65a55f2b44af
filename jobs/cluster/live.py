"""Polls workers for their progress inside shards, without waiting for the replies."""

import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from pairmill.pipeline.common.progress import WorkCounts
from pairmill.pipeline.stages.stage import StageName

INTERVAL_S = 1.0
"""Time between two rounds of polling."""

MAX_QUESTIONS = 50
"""Maximum number of workers polled per round. Each poll costs the driver 0.15 ms, so workers take turns: each of a
thousand workers is polled every 20 s."""

OnWork = Callable[[Mapping[str, WorkCounts]], None]
"""Called with the sums per stage."""
Question = Callable[[], "Future[WorkCounts]"]
"""Asks one worker for its counters. The future raises if the worker is dead."""


@dataclass(eq=False)
class _Asked:
    stage: StageName
    ask: Question
    counts: WorkCounts = field(default_factory=WorkCounts)
    answer: "Future[WorkCounts] | None" = None


class LiveWorkers:
    """Sums all workers' counters per stage and passes the sums to `on_work`. Used only by the driver's loop."""

    def __init__(self, on_work: OnWork) -> None:
        self._on_work = on_work
        self._asked: dict[Hashable, _Asked] = {}
        self._turns: deque[_Asked] = deque()
        self._retired: dict[str, WorkCounts] = {}
        self._next_round = 0.0

    def add(self, worker: Hashable, stage: StageName, ask: Question) -> None:
        """Poll this worker from now on."""
        self._asked[worker] = asked = _Asked(stage, ask)
        self._turns.append(asked)

    def remove(self, worker: Hashable) -> None:
        """Stop polling a worker that is gone; the shards that it finished still count."""
        asked = self._asked.pop(worker, None)
        if asked is None:
            return
        self._turns.remove(asked)
        self._retired[asked.stage] = self._retired.get(asked.stage, WorkCounts()) + asked.counts.retired()

    def tick(self) -> None:
        """Collect answers, poll again and report the sums, unless the last round was less than an interval ago."""
        now = time.monotonic()
        if now < self._next_round:
            return
        self._next_round = now + INTERVAL_S
        for asked in self._asked.values():
            _collect(asked)
        self._ask()
        sums = dict(self._retired)
        for asked in self._asked.values():
            sums[asked.stage] = sums.get(asked.stage, WorkCounts()) + asked.counts
        self._on_work(sums)

    def _ask(self) -> None:
        for _ in range(min(MAX_QUESTIONS, len(self._turns))):
            asked = self._turns[0]
            self._turns.rotate(-1)
            if asked.answer is None:
                asked.answer = asked.ask()


def _collect(asked: _Asked) -> None:
    if asked.answer is None or not asked.answer.done():
        return
    if asked.answer.exception() is None:
        asked.counts = asked.answer.result()
    asked.answer = None
