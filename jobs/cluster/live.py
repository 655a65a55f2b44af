"""Asks workers how far they are inside their shards, without waiting for any answer."""

import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from pairmill.pipeline.common.progress import WorkCounts
from pairmill.pipeline.stages.stage import StageName

INTERVAL_S = 1.0
"""Between two rounds of questions."""

MAX_QUESTIONS = 50
"""Per round. A question costs the driver 0.15 ms: a thousand workers are asked in turn, every 20 s."""

OnWork = Callable[[Mapping[str, WorkCounts]], None]
"""Takes the sums by stage."""
Question = Callable[[], "Future[WorkCounts]"]
"""Asks one worker for its counters. The future raises if the worker is dead."""


@dataclass(eq=False)
class _Asked:
    stage: StageName
    ask: Question
    counts: WorkCounts = field(default_factory=WorkCounts)
    answer: "Future[WorkCounts] | None" = None


class LiveWorkers:
    """Sums the counters of all workers by stage, and hands the sums to `on_work`. For the driver's loop alone."""

    def __init__(self, on_work: OnWork) -> None:
        self._on_work = on_work
        self._asked: dict[Hashable, _Asked] = {}
        self._turns: deque[_Asked] = deque()
        self._retired: dict[str, WorkCounts] = {}
        self._next_round = 0.0

    def add(self, worker: Hashable, stage: StageName, ask: Question) -> None:
        """Ask this worker from now on."""
        self._asked[worker] = asked = _Asked(stage, ask)
        self._turns.append(asked)

    def remove(self, worker: Hashable) -> None:
        """The worker is gone; the shards that it finished stay counted."""
        asked = self._asked.pop(worker, None)
        if asked is None:
            return
        self._turns.remove(asked)
        self._retired[asked.stage] = self._retired.get(asked.stage, WorkCounts()) + asked.counts.retired()

    def tick(self) -> None:
        """Collect answers, ask again and tell the sums, once per interval. Call it as often as you like."""
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
