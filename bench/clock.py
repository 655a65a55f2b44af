"""Records the progress of a job's downloads."""

import time
from collections.abc import Mapping

from bench.rate import middle_rate
from pairmill.jobs.progress import ProgressListener
from pairmill.pipeline.common.progress import WorkCounts


class Clock(ProgressListener):
    """Records (time, downloaded rows), with those inside shards, about once a second."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []

    def working(self, work: Mapping[str, WorkCounts]) -> None:
        self.samples.append((time.perf_counter(), work["download"].rows if "download" in work else 0))

    def failed(self, shard: int, error: str) -> None:
        raise RuntimeError(error)

    @property
    def rows_per_s(self) -> float:
        return middle_rate(self.samples)
