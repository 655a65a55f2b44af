"""`pairmill purge`: withdraws rows from a dataset. `verify --purged`: checks that nothing is left of them.

A request is recorded before anything changes, so an interrupted purge can be finished by running it again, with or
without the lists.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain

import numpy as np
from pydantic import ValidationError

from pairmill.jobs.results import finish as count_and_clean
from pairmill.jobs.select import ROWS_FOR_RAY, open_tasks
from pairmill.pipeline.columns.commands import score_command
from pairmill.pipeline.common.files import absolute
from pairmill.pipeline.common.progress import OnStep, Steps, ignore_step
from pairmill.pipeline.common.storage import StorageError, Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.dataset.withdrawn import refuse_unfinished_purge, unfinished_purges
from pairmill.pipeline.known.keys import PDQ, hash_problem
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.effects import together
from pairmill.pipeline.purge.exports import known_exports, refuse_no_exports
from pairmill.pipeline.purge.keys import key
from pairmill.pipeline.purge.ledger import Ledger, finish, read_request, with_values, write_request
from pairmill.pipeline.purge.leftovers import reports_of
from pairmill.pipeline.purge.lists import Values, read_any_list, read_list
from pairmill.pipeline.purge.needles import Needles
from pairmill.pipeline.purge.preview import preview
from pairmill.pipeline.purge.purge import find, withdraw
from pairmill.pipeline.purge.running import only_purge
from pairmill.pipeline.purge.scan import count_without_hash
from pairmill.pipeline.purge.search_folder import PurgedReport, search_folder
from pairmill.pipeline.purge.side_columns import refuse_lost_scores
from pairmill.pipeline.reader.embeddings import Embeddings
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.search.build_index import build_index
from pairmill.pipeline.select.tasks import Tasks
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.errors import JobError, PairmillError
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.purge import MAX_REASON_CHARS, ExportPurge, ListKind, Purged
from pairmill.schemas.s3 import secret_in

_AGAIN = "rows that were added since earlier requests"
_ONLY_EXPORTS = "exports that earlier requests did not cover"


@dataclass(frozen=True)
class PurgeJob:
    """What to withdraw. Without lists, an interrupted purge is finished, and earlier requests are applied to rows
    that were added since then."""

    lists: Mapping[ListKind, str] = field(default_factory=dict)
    """Kind -> file of values."""
    reason: str | None = None
    """Why the rows are withdrawn. Kept in the ledger."""
    exports: Sequence[str] = ()
    """Exports that the dataset has no record of, because they were made by an earlier version, or by a user without
    permission to write to the dataset."""
    dry_run: bool = False
    run: RunConfig = field(default_factory=RunConfig)


def purge_job(
    lists: Mapping[ListKind, str],
    reason: str | None,
    exports: Sequence[str],
    dry_run: bool,
    settings: Mapping[str, object],
) -> PurgeJob:
    """The job that a command line or a call describes. `settings`: the sections `run` and `s3`. Raises JobError."""
    if unknown := sorted(set(settings) - {"run", "s3"}):
        raise JobError(f"--set {unknown[0]}: a purge accepts only run.* and s3.*")
    try:
        run = RunConfig.model_validate(settings.get("run", {}))
    except ValidationError as error:
        raise JobError(f"--set run: {error.errors(include_url=False)[0]['msg']}") from None
    for path in exports:
        if wrong := secret_in(path):  # the ledger keeps it
            raise JobError(f"--export: {wrong}")
    return PurgeJob(lists, reason, exports, dry_run, run)


@dataclass(frozen=True)
class Unmatched:
    """Listed values of one kind that no row in `pairs/` or `rejects/` had: they are wrong, or their rows were withdrawn
    before or were never committed."""

    values: int
    listed: int
    example: str
    """One of them, in canonical form."""


@dataclass(frozen=True)
class PurgeResult:
    """What a purge did or, with `dry_run`, would do."""

    output: str
    dry_run: bool
    purged: Purged
    remedies: list[str] = field(default_factory=list)
    """Commands that recreate what had to be deleted."""
    subset_rows: Mapping[str, int] = field(default_factory=dict)
    """With `dry_run`: subset that would be rewritten -> the number of its rows that would be withdrawn."""
    score_shards: Mapping[str, int] = field(default_factory=dict)
    """With `dry_run`: score that would be deleted -> the number of shards that have it."""
    unmatched: Mapping[ListKind, Unmatched] = field(default_factory=dict)
    """Kind -> the listed values that no row had, if there are any. PDQ hashes are not counted."""

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        return {
            "output": self.output,
            "dry_run": self.dry_run,
            **self.purged.model_dump(mode="json"),
            "remedies": self.remedies,
            "unmatched": {kind: asdict(each) for kind, each in self.unmatched.items()},
            **({"subset_rows": self.subset_rows, "score_shards": self.score_shards} if self.dry_run else {}),
        }


def purge(store: Store, job: PurgeJob, on_step: OnStep = ignore_step) -> PurgeResult:
    """Withdraw rows. If interrupted, call it again to finish.

    Raises JobError, before anything changes, if a list is bad, the reason is missing, a path is not an export, or
    another purge is running, and ManifestError if the card or state of a score is lost. Raises StorageError if this
    user may not delete files.
    """
    store.check_access()
    plan = load_plan(store)
    values = _values(store, job)
    exports = [absolute(path) for path in job.exports]
    refuse_no_exports(store, exports)
    known_exports(store, exports)  # finds a damaged note of an export before anything changes
    refuse_lost_scores(store)
    steps = Steps(on_step, "reading manifests")
    if job.dry_run:
        with open_tasks(job.run, plan.num_rows < ROWS_FOR_RAY, steps) as tasks:
            return _planned(store, values, exports, tasks)
    with only_purge(store):
        try:
            return _purge(store, plan, job, values, exports, steps)
        except PermissionError as error:
            raise StorageError(
                f"{error}; a purge needs permission to write and delete. Grant it, then finish the purge: "
                + pairmill_command("purge", store.root)
            ) from error


def _purge(
    store: Store, plan: Plan, job: PurgeJob, values: Values, exports: Sequence[str], steps: Steps
) -> PurgeResult:
    if values or exports:
        write_request(store, values, job.reason or _ONLY_EXPORTS, exports)
    with open_tasks(job.run, plan.num_rows < ROWS_FOR_RAY, steps) as tasks:
        if not unfinished_purges(store) and find(store, Ledger.load(store), tasks):
            write_request(store, {}, _AGAIN)
        numbers: list[int | None] = [*unfinished_purges(store)] or [None]
        results = [_finish(store, plan, number, tasks, steps) for number in numbers]
    remedies = list(dict.fromkeys(command for _, commands, _ in results for command in commands))
    unmatched = _unmatched(values, DigestSet.union([matched for *_, matched in results]))
    return PurgeResult(store.root, False, together([purged for purged, *_ in results]), remedies, unmatched=unmatched)


def _finish(
    store: Store, plan: Plan, number: int | None, tasks: Tasks, steps: Steps
) -> tuple[Purged, list[str], DigestSet]:
    """Finish a request. Returns what was done, the commands that recreate what had to be deleted, and the hashes of
    the values that rows had."""
    started = time.perf_counter()
    exports = [] if number is None else read_request(store, number).exports
    done, matched = withdraw(store, plan, number, exports, tasks, steps)
    count_and_clean(store, plan, {}, started)  # writes images/sizes.json
    remedies = [pairmill_command("report", store.root)] if "report.html" in done.reports else []
    remedies += [
        pairmill_command("report", store.root, "--subset", name.removeprefix("report-").removesuffix(".html"))
        for name in done.reports
        if name != "report.html"
    ]
    remedies += [score_command(store.root, name, json.loads(settings)) for name, settings in done.scores.items()]
    remedies += [problem for folder in done.indexes if (problem := _index_again(store, folder, steps.on_step))]
    if number is not None:
        finish(store, number, done.rows)
    return done, remedies, matched


def _unmatched(values: Values, matched: DigestSet) -> dict[ListKind, Unmatched]:
    found: dict[ListKind, Unmatched] = {}
    for kind, listed in values.items():
        ordered = sorted(listed) if kind != "pdq" else []
        places = np.flatnonzero(~matched.contains([key(kind, value) for value in ordered]))
        if len(places):
            found[kind] = Unmatched(len(places), len(ordered), ordered[places[0]])
    return found


def _values(store: Store, job: PurgeJob) -> Values:
    """The values of all lists. Raises JobError."""
    values = {kind: read_list(store.files, path, kind) for kind, path in job.lists.items()}
    reason = (job.reason or "").strip()
    if values and not reason and not job.dry_run:
        raise JobError("--reason: say in a few words why the rows are withdrawn; the ledger keeps this text")
    if len(reason) > MAX_REASON_CHARS:
        raise JobError(f"--reason: {len(reason):,} characters, but at most {MAX_REASON_CHARS:,} are allowed")
    needles = Needles(values)
    if found := next(chain(needles.in_text(reason), needles.in_cells(reason.split())), None):
        kind = found.partition(" ")[0]
        raise JobError(f"--reason names a {kind} of the list, which would stay in the ledger; reword it")
    if "pdq" in values and committed(store):  # before the first commit, the list blocks rows of the build
        _refuse_without_pdq(Snapshot.for_purge(store))
    if not values and Ledger.load(store).is_empty:
        raise JobError("say what to withdraw: --uids, --urls, --hosts, --sha256 or --pdq FILE")
    return values


def _refuse_without_pdq(snapshot: Snapshot) -> None:
    """Raise JobError if the pictures have no PDQ hashes to compare: nothing would be withdrawn."""
    if PDQ not in snapshot.schema.names:
        add = f"add it: {pairmill_command('score', snapshot.store.root, 'hash', '--score', 'pictures: pdq')}"
        why = snapshot.added.missing(PDQ) or f"there is no column `{PDQ}`; {add}"
        raise JobError(f"--pdq: no picture can be compared: {why}")
    if problem := hash_problem(snapshot.schema, [PDQ]):
        raise JobError(f"--pdq: no picture can be compared: {problem}")


def _planned(store: Store, values: Values, exports: Sequence[str], tasks: Tasks) -> PurgeResult:
    """What a purge would find in the shards, the subsets, scores and reports that it would change or delete, and the
    exports that it would search."""
    keys = {kind: [key(kind, value) for value in listed] for kind, listed in values.items()}
    found = preview(store, with_values(Ledger.load(store), keys), tasks)
    purged = Purged(
        rows=sum(hit.pairs + hit.rejects for hit in found.hits),
        not_compared=count_without_hash(store, committed(store), tasks) if "pdq" in values else 0,
        shards=[hit.shard for hit in found.hits],
        subsets=list(found.subset_rows),
        scores=dict(found.scores),
        reports=reports_of(store) if found.hits else [],
        exports=[ExportPurge(output=output, outcome="known") for output in known_exports(store, exports)],
    )
    return PurgeResult(
        store.root,
        True,
        purged,
        subset_rows=found.subset_rows,
        score_shards=found.score_shards,
        unmatched=_unmatched(values, found.matched),
    )


def _index_again(store: Store, folder: str, on_step: OnStep) -> str | None:
    """Rebuild the lost parts of an index. Returns the command for this if it fails."""
    alias, _, kind = folder.rpartition("-")
    of_text = ["--of", "text"] if kind == "text" else []
    command = pairmill_command("index", store.root, "--model", alias, *of_text)
    try:
        build_index(Embeddings.of(Snapshot.for_purge(store), alias, "text" if kind == "text" else "image"), on_step)
    except (PairmillError, OSError) as error:
        return f"{command} ({error})"
    return None


def verify_purged(store: Store, path: str, run: RunConfig | None = None, on_step: OnStep = ignore_step) -> PurgedReport:
    """Search every file of an output folder for the values of a list, and for what the ledger knows about the
    withdrawn rows. Raises JobError for a bad list, or if a purge is not finished."""
    store.check_access()
    plan = load_plan(store)
    refuse_unfinished_purge(store)
    values = read_any_list(store.files, path)
    with open_tasks(run or RunConfig(), plan.num_rows < ROWS_FOR_RAY, Steps(on_step, "searching files")) as tasks:
        return search_folder(store, values, tasks)
