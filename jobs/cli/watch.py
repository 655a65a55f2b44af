"""`pairmill status OUT --watch`: how a job goes, seen from any machine that can read its output."""

import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pairmill.jobs.live_line import duration
from pairmill.jobs.progress import ConsoleProgress
from pairmill.jobs.results import BuildResult, current
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed, read_manifest
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.manifest import ShardManifest, manifest_name

QUIET_INTERVALS = 10
"""So many times the usual time between two commits without one, and the job has most likely ended."""
MIN_QUIET_S = 30.0
FIRST_SHARD_S = 60.0
"""Taken for the time of a shard as long as none is done."""
_SAMPLE = 64
"""Manifests that the time of a shard is taken from."""


@dataclass
class CommitClock:
    """Knows how often shards are committed, and so when none will come any more. Times by time.monotonic."""

    shard_s: float
    """What one shard takes through all stages: the most that lies between two commits of a job that runs."""
    started: float
    commits: int = 0
    first: float = 0.0
    last: float = 0.0
    said: int = 0

    @classmethod
    def of(cls, manifests: Collection[ShardManifest]) -> "CommitClock":
        """From shards that are done."""
        seconds = [sum(manifest.seconds.values()) for manifest in manifests]
        return cls(statistics.median(seconds) if seconds else FIRST_SHARD_S, time.monotonic())

    def tick(self, commits: int) -> None:
        """So many shards have come since the last look."""
        if commits:
            now = time.monotonic()
            self.first = self.first if self.commits else now
            self.commits, self.last, self.said = self.commits + commits, now, 0

    @property
    def usual_s(self) -> float:
        """Between two commits: as seen, or before two were seen, what a shard takes."""
        return (self.last - self.first) / (self.commits - 1) if self.last > self.first else self.shard_s

    @property
    def silence(self) -> str | None:
        """What to say of a silence that is too long; again whenever it has doubled."""
        silent_s = time.monotonic() - (self.last or self.started)
        if silent_s < max(QUIET_INTERVALS * self.usual_s, MIN_QUIET_S) * 2**self.said:
            return None
        self.said += 1
        usual = f"one {'came every' if self.commits > 1 else 'takes'} {duration(self.usual_s)}"
        return (
            f"no shard for {duration(silent_s)}, where {usual}: the job has ended or hangs; run its command again to "
            "continue"
        )


def watch(store: Store, listener: ConsoleProgress, every_s: float) -> BuildResult:
    """Tell `listener` of every shard that is committed from now on, until all are; then what the output holds.

    It is also told when nothing seems to run any more. Each look lists the manifests' names and reads the new ones.
    Raises PlanError where there is no plan.
    """
    plan, seen = load_plan(store), committed(store)
    rows = dict(zip(plan.shards["shard"].to_pylist(), plan.shards["num_rows"].to_pylist(), strict=True))
    done = sum(rows[shard] for shard in seen)
    listener.watching(len(rows) - len(seen), plan.num_rows - done, done)
    clock = CommitClock.of(_read(store, sorted(seen.items())[-_SAMPLE:]))
    while len(seen) < len(rows):
        time.sleep(every_s)
        new = {shard: generation for shard, generation in committed(store).items() if shard not in seen}
        for manifest in _read(store, sorted(new.items())):
            listener.committed(manifest)
        seen |= new
        clock.tick(len(new))
        if silence := clock.silence:
            listener.say(silence)
    return current(store)


def _read(store: Store, shards: Sequence[tuple[int, int]]) -> list[ShardManifest]:
    """The manifests of these (shard, generation)."""
    return [read_manifest(store, manifest_name(shard, generation)) for shard, generation in shards]
