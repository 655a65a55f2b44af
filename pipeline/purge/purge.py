"""Withdraws the rows that the ledger lists from all files of an output folder.

Every step checks the current state of the folder, records what is left to do, and then does it. So a purge that was
killed at any point ends in the same state when it runs again, and reports everything that was done. The order matters:
new generations come before subsets, which need the old generations to find their rows, and old generations are deleted
after everything that needs them.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress

from pairmill.pipeline.common.progress import Steps
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import retract_incomplete
from pairmill.pipeline.dataset.manifests import committed, manifests_of, read_manifest
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.effects import Effects
from pairmill.pipeline.purge.exports import purge_exports
from pairmill.pipeline.purge.inputs import delete_unplanned, purge_inputs
from pairmill.pipeline.purge.ledger import Ledger, merge_parts, read_request, withdrawn_vectors
from pairmill.pipeline.purge.leftovers import (
    delete_failures,
    delete_reports,
    delete_scores,
    purge_indexes,
    purge_labels,
)
from pairmill.pipeline.purge.matching import Matcher
from pairmill.pipeline.purge.next_generation import rewrite_shards
from pairmill.pipeline.purge.scan import Hit, count_without_hash, scan, shared
from pairmill.pipeline.purge.side_columns import scores_with
from pairmill.pipeline.purge.subsets import naming_withdrawn, purge_subsets
from pairmill.pipeline.purge.superseded import delete_all, unneeded_files
from pairmill.pipeline.select.tasks import Tasks
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.purge import Purged

_PER_CALL = 16
"""Number of shards that a task rewrites."""


def withdraw(
    store: Store, plan: Plan, number: int | None, exports: Sequence[str], tasks: Tasks, steps: Steps
) -> tuple[Purged, DigestSet]:
    """Withdraw all rows of the ledger's requests up to `number`; None for all requests, without recording the effects.
    `exports`: paths of exports that the dataset does not know of. Returns what was done, including before an
    interruption, and the hashes of the listed values that rows had, apart from rows that an interrupted purge withdrew.
    """
    effects = Effects(store, number)
    matched = _withdraw_from_shards(store, number, tasks, steps, effects)
    ledger, generations = Ledger.load(store, number), committed(store)
    if number is not None and "pdq" in read_request(store, number).values:
        effects.note(not_compared=count_without_hash(store, generations, tasks))
    matcher = Matcher(ledger)
    steps.name = "withdrawing from subsets and indexes"
    steps.part(0, 1)
    _note_each(effects, "subsets", purge_subsets(store, ledger, generations))
    effects.note(named_in_steps=naming_withdrawn(store, matcher))
    _note_each(effects, "labels", purge_labels(store, ledger.uids))
    _note_each(effects, "indexes", purge_indexes(store, generations))
    scores = scores_with(store, ledger.uids, lambda: withdrawn_vectors(store), _lost_pairs(store))
    effects.note(scores=effects.purged.scores | scores)
    delete_scores(store, list(reversed(scores)))  # a score goes before the scores it is made from
    steps.name = "withdrawing from input/ and exports"
    steps.part(0, 1)
    _note_each(effects, "inputs", delete_unplanned(store, plan))
    _note_each(effects, "inputs", purge_inputs(store, plan, matcher))
    if effects.purged.shards:  # otherwise, no row was removed that a report could show
        _note_each(effects, "reports", delete_reports(store))
    effects.note(failures=effects.purged.failures or len(store.list("failures")))
    delete_failures(store)
    for export in purge_exports(store, ledger.uids, exports):
        effects.add_export(export)
    steps.name = "deleting old generations"
    steps.part(0, 1)
    deleted = _delete_unneeded(store)
    store.remove_temporary()
    if number is not None:
        effects.note(rows=merge_parts(store, number), files_deleted=effects.purged.files_deleted + deleted)
    return effects.purged, matched


def _delete_unneeded(store: Store) -> int:
    """Delete files that no manifest names. Returns their number. A build that is running, although it should not, can
    commit such files in the meantime: then its shard is not committed after all."""
    before = committed(store)
    deleted = len(delete_all(store, unneeded_files(store, min_age_s=0)))
    for shard, generation in committed(store).items():
        if before.get(shard) != generation:
            with suppress(FileNotFoundError):  # the build itself has found out
                retract_incomplete(store, read_manifest(store, manifest_name(shard, generation)))
    return deleted


def _lost_pairs(store: Store) -> bool:
    """Whether a shard has fewer pairs than in an older generation, which exists until the end of the purge."""
    for shard, generations in manifests_of(store).items():
        if len(generations) > 1:
            *older, newest = (read_manifest(store, manifest_name(shard, each)).pairs for each in sorted(generations))
            if newest < max(older):
                return True
    return False


def _note_each(effects: Effects, field: str, names: Iterable[str]) -> None:
    """Note each name before its file changes, which happens when the next name is requested."""
    for name in names:
        effects.add(field, name)


def find(store: Store, ledger: Ledger, tasks: Tasks) -> list[Hit]:
    """The shards with rows that the ledger withdraws."""
    return scan(store, Matcher(ledger), committed(store), tasks)


def _withdraw_from_shards(store: Store, number: int | None, tasks: Tasks, steps: Steps, effects: Effects) -> DigestSet:
    """Rewrite the shards with withdrawn rows. Then search all shards for the uids of these rows: other shards can have
    the same pairs without a value that matches, such as the SHA-256 of a picture that could not be fetched there.
    Returns the hashes of the listed values that the rows had."""
    ledger, matched = Ledger.load(store, number), DigestSet.of([])
    matcher = Matcher(ledger)
    while True:
        steps.name = "looking for rows"
        hits = scan(store, matcher, committed(store), tasks)
        matched = DigestSet.union([matched, *(hit.matched for hit in hits)])
        effects.note(shards=sorted({*effects.purged.shards, *(hit.shard for hit in hits)}))
        steps.name = "rewriting shards"
        handle = shared(tasks, matcher)
        found = [(hit.shard, hit.generation) for hit in hits]
        calls = [(store, handle, found[start : start + _PER_CALL]) for start in range(0, len(found), _PER_CALL)]
        for _ in tasks.get(tasks.map(rewrite_shards, calls)):
            pass
        before, ledger = len(ledger.uids), Ledger.load(store, number)
        if len(ledger.uids) == before:
            return matched
        matcher = Matcher(ledger, by_uid_only=True)
