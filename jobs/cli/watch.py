"""`pairmill status OUT --watch`: how a job goes, seen from any machine that can read its output."""

import time
from collections.abc import Callable

from pairmill.jobs.progress import ConsoleProgress
from pairmill.jobs.results import BuildResult, current
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed, read_manifest
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.manifest import manifest_name

QUIET_S = 300.0
"""After so long without a commit a person should know."""


def watch(
    store: Store, listener: ConsoleProgress, every_s: float, say: Callable[[str], None], quiet_s: float = QUIET_S
) -> BuildResult:
    """Tell `listener` of every shard that is committed from now on, until all are; then what the output holds.

    Each look lists the manifests' names and reads the new ones. Raises PlanError where there is no plan.
    """
    plan, seen = load_plan(store), set(committed(store))
    rows = dict(zip(plan.shards["shard"].to_pylist(), plan.shards["num_rows"].to_pylist(), strict=True))
    done = sum(rows[shard] for shard in seen)
    last = time.monotonic()
    listener.watching(len(rows) - len(seen), plan.num_rows - done, done)
    while len(seen) < len(rows):
        time.sleep(every_s)
        new = {shard: generation for shard, generation in committed(store).items() if shard not in seen}
        for shard, generation in sorted(new.items()):
            listener.committed(read_manifest(store, manifest_name(shard, generation)))
        seen |= new.keys()
        if new:
            last = time.monotonic()
        elif time.monotonic() - last > quiet_s:
            last = time.monotonic()
            say(f"nothing was committed for {quiet_s / 60:.0f} min: is the job still running?")
    return current(store)
