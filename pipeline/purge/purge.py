"""Withdraws what the ledger says, everywhere in an output folder.

Every step looks at the folder as it is, and does what is left to do. So a purge that was killed at any point ends in
the same state when it runs again. The order matters: new generations come before subsets, which need the old ones to
find their rows, and old generations are deleted after everything that needs them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from pairmill.pipeline.common.progress import Steps
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.exports import ExportPurge, purge_exports
from pairmill.pipeline.purge.inputs import delete_unplanned, purge_inputs
from pairmill.pipeline.purge.ledger import Ledger, withdrawn_rows
from pairmill.pipeline.purge.leftovers import (
    delete_failures,
    delete_reports,
    delete_scores,
    purge_indexes,
    purge_labels,
)
from pairmill.pipeline.purge.matching import Matcher
from pairmill.pipeline.purge.next_generation import rewrite_shards
from pairmill.pipeline.purge.scan import Hit, scan, shared
from pairmill.pipeline.purge.side_columns import scores_with
from pairmill.pipeline.purge.subsets import purge_subsets
from pairmill.pipeline.purge.superseded import delete_all, unneeded_files
from pairmill.pipeline.select.tasks import Tasks
from pairmill.pipeline.source.planned import Plan

_PER_CALL = 16
"""Shards that a task rewrites."""


@dataclass
class Purged:
    """What a purge did, or with a dry run would do."""

    rows: int = 0
    """Rows that were withdrawn: pairs and rejects."""
    shards: list[int] = field(default_factory=list)
    """Shards that held them, which were rewritten."""
    subsets: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    """Files of `input/` in which rows were blanked, or that the plan does not use."""
    labels: list[str] = field(default_factory=list)
    indexes: list[str] = field(default_factory=list)
    """Search indexes that lost parts."""
    scores: dict[str, str] = field(default_factory=dict)
    """Scores that were deleted, because they were computed in relation to withdrawn rows, or are made from such a score
    -> their settings, as after `score --score`."""
    reports: list[str] = field(default_factory=list)
    failures: int = 0
    """Tracebacks of failed shards that were deleted."""
    exports: list[ExportPurge] = field(default_factory=list)
    files_deleted: int = 0
    """Files of old generations, and files that interrupted commands left."""

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


def withdraw(store: Store, plan: Plan, exports: Sequence[str], tasks: Tasks, steps: Steps) -> Purged:
    """Withdraw everything that is in the ledger. `exports`: paths of exports that the dataset does not know of."""
    done = Purged()
    _withdraw_from_shards(store, tasks, steps, done)
    ledger, generations = Ledger.load(store), committed(store)
    steps.name = "withdrawing from subsets and indexes"
    steps.part(0, 1)
    done.subsets = purge_subsets(store, ledger, generations)
    done.labels = list(purge_labels(store, ledger.uids))
    done.indexes = list(purge_indexes(store, generations))
    vectors = withdrawn_rows(store)["vectors"].combine_chunks().flatten().to_pylist()
    done.scores = scores_with(store, ledger.uids, DigestSet.of(vectors))
    delete_scores(store, list(reversed(done.scores)))  # a score that is made from another one goes before it
    steps.name = "withdrawing from input/ and exports"
    steps.part(0, 1)
    done.inputs = delete_unplanned(store, plan) + purge_inputs(store, plan, Matcher(ledger))
    done.reports = list(delete_reports(store))
    done.failures = len(list(delete_failures(store)))
    done.exports = purge_exports(store, ledger.uids, exports, dry_run=False)
    steps.name = "deleting old generations"
    steps.part(0, 1)
    done.files_deleted = len(delete_all(store, unneeded_files(store, min_age_s=0)))
    store.remove_temporary()
    return done


def find(store: Store, ledger: Ledger, tasks: Tasks) -> list[Hit]:
    """The shards that hold rows which the ledger withdraws."""
    return scan(store, Matcher(ledger), committed(store), tasks)


def _withdraw_from_shards(store: Store, tasks: Tasks, steps: Steps, done: Purged) -> None:
    """Rewrite the shards that hold withdrawn rows. Then again by the uids of these rows, which may be in other shards,
    where another column did not give them away, such as the SHA-256 of a picture that could not be fetched there."""
    ledger = Ledger.load(store)
    matcher, touched = Matcher(ledger), set[int]()
    while True:
        steps.name = "looking for rows"
        hits = scan(store, matcher, committed(store), tasks)
        steps.name = "rewriting shards"
        handle = shared(tasks, matcher)
        found = [(hit.shard, hit.generation) for hit in hits]
        calls = [(store, handle, found[start : start + _PER_CALL]) for start in range(0, len(found), _PER_CALL)]
        done.rows += sum(tasks.get(tasks.map(rewrite_shards, calls)))
        touched |= {hit.shard for hit in hits}
        before, ledger = len(ledger.uids), Ledger.load(store)
        if len(ledger.uids) == before:
            break
        matcher = Matcher(ledger, by_uid_only=True)
    done.shards = sorted(touched)
