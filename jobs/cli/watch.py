"""`pairmill status OUT --watch`: shows a job's progress on any machine that can read its output."""

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
"""After this many usual intervals without a commit, the job has most likely ended."""
MIN_QUIET_S = 30.0
FIRST_SHARD_S = 60.0
"""Assumed time per shard until the first one is done."""
_SAMPLE = 64
"""Number of manifests that the time per shard is computed from."""


@dataclass
class CommitClock:
    """Tracks how often shards are committed, to detect that a job has ended. Times are from time.monotonic."""

    shard_s: float
    """Time that one shard takes in all stages. A running job should commit at least this often."""
    started: float
    commits: int = 0
    first: float = 0.0
    last: float = 0.0
    said: int = 0

    @classmethod
    def of(cls, manifests: Collection[ShardManifest]) -> "CommitClock":
        """A clock that starts with the times of finished shards."""
        seconds = [sum(manifest.seconds.values()) for manifest in manifests]
        return cls(statistics.median(seconds) if seconds else FIRST_SHARD_S, time.monotonic())

    def tick(self, commits: int) -> None:
        """Record the number of commits since the last call."""
        if commits:
            now = time.monotonic()
            self.first = self.first if self.commits else now
            self.commits, self.last, self.said = self.commits + commits, now, 0

    @property
    def usual_s(self) -> float:
        """Usual time between two commits. Until two have been seen, the time per shard."""
        return (self.last - self.first) / (self.commits - 1) if self.last > self.first else self.shard_s

    @property
    def silence(self) -> str | None:
        """A message if there has been no commit for too long, and another each time that period doubles."""
        silent_s = time.monotonic() - (self.last or self.started)
        if silent_s < max(QUIET_INTERVALS * self.usual_s, MIN_QUIET_S) * 2**self.said:
            return None
        self.said += 1
        usual = f"one {'came every' if self.commits > 1 else 'takes'} {duration(self.usual_s)}"
        return (
            f"no shard has been committed for {duration(silent_s)}, although {usual}: the job has ended or hangs; "
            "run its command again to resume"
        )


def watch(store: Store, listener: ConsoleProgress, every_s: float) -> BuildResult:
    """Report newly committed shards to `listener` until all are committed. Returns what the output then contains.

    Also reports when the job seems to have ended. Each check lists the names of the manifests and reads the new ones.
    Raises PlanError if there is no plan.
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
