"""Records a worker's Prometheus metrics. Ray's node agents export them under names that begin with `ray_pairmill_`."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pairmill.jobs.cluster.worker_backend import Report
from pairmill.schemas.batch import ShardBatch

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
"""Boundaries of all histograms."""


class StageMetrics:
    """Metrics of one worker. `metrics` is `ray.util.metrics`, passed in so that only workers import Ray."""

    def __init__(self, metrics: Any, stage: str) -> None:
        self.stage = {"stage": stage}
        self._pairs = metrics.Counter("pairmill_pairs", "Committed rows, by Status", ("status",))
        self._bytes = metrics.Counter("pairmill_fetched_bytes", "Bytes downloaded")
        self._shards = metrics.Counter("pairmill_shards", "Shards that went through a stage", ("stage", "outcome"))
        self._idle = metrics.Counter("pairmill_idle_seconds", "Seconds that a worker was idle", ("stage",))
        self._histograms = {
            "shard": metrics.Histogram("pairmill_shard_seconds", "Time of one shard in a stage", SECONDS, ("stage",)),
            "fetch": metrics.Histogram(
                "pairmill_fetch_seconds", "Time of one URL, including redirects and retries", SECONDS
            ),
            "encode_batch": metrics.Histogram(
                "pairmill_encode_batch_seconds", "Time of one batch through a model", SECONDS
            ),
            "encode_wait": metrics.Histogram(
                "pairmill_encode_wait_seconds", "Time that the model waits for the next decoded batch", SECONDS
            ),
        }
        self._lock, self._running, self._since = threading.Lock(), 0, time.monotonic()

    def observe(self, name: str, seconds: float, tags: dict[str, str] | None = None) -> None:
        """Record `seconds` in the histogram of that name."""
        self._histograms[name].observe(seconds, tags)

    @contextmanager
    def shard(self) -> Iterator[None]:
        """Time the work on one shard, which runs inside the block. Several may be in progress at once."""
        started = time.monotonic()
        with self._lock:
            if not self._running and started > self._since:
                self._idle.inc(started - self._since, self.stage)
            self._running += 1
        try:
            yield
        finally:
            ended = time.monotonic()
            with self._lock:
                self._running, self._since = self._running - 1, ended
            self.observe("shard", ended - started, self.stage)

    def ended(self, report: Report, batch: ShardBatch | None) -> None:
        """Count the shard by its outcome. `batch`: the stage's output."""
        self._shards.inc(1, {**self.stage, "outcome": "failed" if report.failure else "ok"})
        if batch is not None and self.stage["stage"] == "download" and "fetch_s" in batch.table.column_names:
            for seconds in batch.table["fetch_s"].drop_null().to_pylist():
                self.observe("fetch", seconds)
        if report.manifest:
            for status, count in report.manifest.statuses.items():
                self._pairs.inc(count, {"status": status})
            if report.manifest.bytes_fetched:
                self._bytes.inc(report.manifest.bytes_fetched)


class _Ignored:
    """A counter or histogram that nobody reads."""

    def __init__(self, *_: object) -> None:
        pass

    def inc(self, *_: object) -> None:
        """Do nothing."""

    def observe(self, *_: object) -> None:
        """Do nothing."""


class NoMetrics:
    """Takes the place of `ray.util.metrics` where no node agent exports metrics."""

    Counter = Histogram = _Ignored
