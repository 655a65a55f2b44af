"""Counts what an output folder contains, from its manifests: during a run, after it, and for `status`."""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import last_line
from pairmill.pipeline.dataset.losses import StatusCounts
from pairmill.pipeline.dataset.manifests import committed, read_manifests
from pairmill.pipeline.dataset.strays import SIZES_NAME, StrayFiles, tar_sizes
from pairmill.pipeline.dataset.webdataset_tar import sizes_table
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.manifest import CustomRuleCount, ShardManifest

_PASSES = 2
"""How often `finish` adds up the manifests while other runs commit shards of the same output."""
MAX_FAILURES_READ = 100
"""How many failures `status` reads from an output folder."""


@dataclass(frozen=True)
class BuildResult:
    """What an output folder contains after a run."""

    output: str
    shards: int
    shards_missing: list[int]
    input_rows: int
    """Input rows that are done."""
    rows_in: int
    """Rows that are done, one per caption."""
    pairs: int
    rejects: int
    kept: int
    statuses: dict[str, int]
    seconds: float
    failures: dict[int, str] = field(default_factory=dict)
    """Shard -> last line of its traceback. The full traceback is in `failures/`."""
    custom_rules: dict[str, CustomRuleCount] = field(default_factory=dict)
    """Name of a custom rule -> the step where it ran, and the `custom_rule` rows that it dropped. In the step `score`,
    a duplicate in the same shard counts as `duplicate_in_shard` instead, so the count depends on `shard_rows`."""
    stopped: str | None = None
    """Why the run stopped before it had tried all shards. None if it tried them all."""
    seen: int = 0
    """Number of items (files, members and records) found in the input: those that became rows or parts of rows, and
    those that were skipped ("passed over")."""
    parts: int = 0
    """How many of these items are only part of another item's row, such as a caption file beside a picture."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Reason -> how many of these items were not used."""

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        rules = {name: count.model_dump(mode="json") for name, count in self.custom_rules.items()}
        return {**asdict(self), "custom_rules": rules}


def finish(store: Store, plan: Plan, failures: dict[int, str], started: float) -> BuildResult:
    """Add up the manifests, and clean up after the run."""
    strays, done = StrayFiles(store), committed(store)
    for name in store.list("failures"):
        shard = name.removesuffix(".txt")
        if shard.isdigit() and int(shard) in done and int(shard) not in failures:
            store.delete(f"failures/{name}")
    for _ in range(_PASSES):
        before, totals, done = done, _add_up(store, plan, strays), committed(store)
        if done == before:
            break  # otherwise, another run may have written the sizes of its shards before this one replaced them
    store.remove_temporary()
    return totals.result(store, plan, failures, time.perf_counter() - started)


def _add_up(store: Store, plan: Plan, strays: StrayFiles) -> "Totals":
    """Add up the manifests, delete strays, and write the sizes of the tars."""
    totals, sizes = Totals(), dict[str, int]()
    for manifest in read_manifests(store):
        strays.remove(manifest)
        totals.add(manifest)
        sizes |= tar_sizes(manifest, plan.job.images)
    if sizes or store.exists(SIZES_NAME):  # without pictures after a purge
        store.replace(SIZES_NAME, sizes_table(sizes))
    return totals


def current(store: Store) -> BuildResult:
    """What an output folder contains now, during or after a run. Raises PlanError if there is no output."""
    store.check_access()
    plan, totals = load_plan(store), Totals()
    for manifest in read_manifests(store):
        totals.add(manifest)
    numbers = [int(name.removesuffix(".txt")) for name in store.list("failures") if name.removesuffix(".txt").isdigit()]
    failed = [shard for shard in numbers if shard not in totals.shards][:MAX_FAILURES_READ]
    failures = {shard: last_line(store.read(failure_name(shard)).decode(errors="replace")) for shard in failed}
    return totals.result(store, plan, failures, 0.0)


@dataclass
class Totals(StatusCounts):
    """Sums over manifests, added one by one, so only a few numbers stay in memory."""

    shards: set[int] = field(default_factory=set)
    rows: Counter[str] = field(default_factory=Counter)

    def add(self, manifest: ShardManifest) -> None:
        """Add one shard."""
        super().add(manifest)
        self.shards.add(manifest.shard)
        for name in ("num_rows", "rows_in", "pairs", "rejects", "kept"):
            self.rows[name] += getattr(manifest, name)

    def result(self, store: Store, plan: Plan, failures: dict[int, str], seconds: float) -> BuildResult:
        """The totals, compared with the plan."""
        return BuildResult(
            output=store.root,
            shards=plan.num_shards,
            shards_missing=[shard for shard in plan.shards["shard"].to_pylist() if shard not in self.shards],
            input_rows=self.rows["num_rows"],
            rows_in=self.rows["rows_in"],
            pairs=self.rows["pairs"],
            rejects=self.rows["rejects"],
            kept=self.rows["kept"],
            statuses=dict(self.statuses.most_common()),
            seconds=round(seconds, 1),
            failures=failures,
            custom_rules=self.custom_rules,
            seen=plan.seen,
            parts=plan.parts,
            passed_over=plan.passed_over,
        )


def failure_name(shard: int) -> str:
    """File with the traceback of a shard that failed."""
    return f"failures/{shard:09d}.txt"
