"""`pairmill embed OUT --add-model M`: adds one more model's columns to a finished dataset, in `columns/ALIAS/`.

Existing files do not change. Run the same command again after an interruption, after a retry, or when there are new
shards; it processes only what is new.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pairmill.jobs.build import run_shards_of
from pairmill.jobs.check import check, model_warnings
from pairmill.jobs.job_file import resolve, s3_of
from pairmill.jobs.progress import ColumnsProgress, ProgressListener
from pairmill.jobs.results import BuildResult, finish
from pairmill.pipeline.columns.added_columns import MODEL_CARD, columns_done
from pairmill.pipeline.columns.added_model import AddedModel, pictures_left_out, read_card
from pairmill.pipeline.columns.column_files import recorded_fingerprint
from pairmill.pipeline.columns.score_card import SCORE_CARD
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.manifests import committed, record_bytes
from pairmill.pipeline.dataset.withdrawn import refuse_unfinished_purge
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.pipeline.stages.pipelines import Pipeline, add_model_pipeline
from pairmill.schemas.errors import JobError


@dataclass(frozen=True)
class ColumnsResult:
    """The result of adding a model to a dataset."""

    build: BuildResult
    alias: str
    shards_missing: list[int]
    """Committed shards that lack the model's columns."""
    pictures_left_out: dict[str, int] = field(default_factory=dict)
    """Manifest in `columns/ALIAS/manifests/` -> number of pictures without an embedding, because they are missing
    or have changed since the dataset was made."""

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        names = ("alias", "shards_missing", "pictures_left_out")
        return {"output": self.build.output, **{name: getattr(self, name) for name in names}}


def add_model(
    output: str,
    model: Mapping[str, object],
    settings: Mapping[str, object] | None = None,
    listener: ProgressListener | None = None,
) -> ColumnsResult:
    """Compute one more model for all committed shards. `model`: fields of ModelConfig; `settings`: such as
    {"run": {"device": "cuda"}}. Raises JobError."""
    started = time.perf_counter()
    store = Store(output, s3_of(settings or {}))
    store.check_access()
    refuse_unfinished_purge(store)
    plan = load_plan(store)
    pipeline = _pipeline(store, plan, model, settings or {})
    (added,) = pipeline.job.models
    alias = added.alias
    generations, failures = committed(store), dict[int, str]()
    done = columns_done(store, alias)
    column = pa.array([generations.get(shard) for shard in plan.shards["shard"].to_pylist()], pa.int64())
    missing = pa.array(
        [shard in generations and done.get(shard) != generations[shard] for shard in plan.shards["shard"].to_pylist()]
    )
    shards = plan.shards.append_column("generation", column).filter(missing)
    if listener:
        adding = f"adding {alias} to {shards.num_rows:,} of {counted(len(generations), 'shard')}"
        description = "\n".join([adding, *model_warnings(pipeline.job)])
        listener.planned(description, shards.num_rows, sum(shards["num_rows"].to_pylist()), 0)
    told = ColumnsProgress(listener) if listener else None
    stopped = run_shards_of(pipeline, shards, told, failures) if shards.num_rows else None
    done, now = columns_done(store, alias), committed(store)  # a retry may have made new generations in the meantime
    lacking = [shard for shard in sorted(generations) if done.get(shard) != now.get(shard)]
    built = replace(finish(store, plan, failures, started), stopped=stopped)
    return ColumnsResult(built, alias, lacking, pictures_left_out(store, alias))


def _pipeline(store: Store, plan: Plan, model: Mapping[str, object], settings: Mapping[str, object]) -> Pipeline:
    known = plan.job.model_dump(mode="json")
    if not plan.job.source.is_corpus and plan.job.images.store == "none":
        raise JobError(f"{store.root} stored no pictures (images.store: none), so there is nothing to embed")
    taken = [each["alias"] for each in known["models"]]
    rules = {**known["rules"], "min_similarity": None, "preset": "none", "known": []}
    values = {**known, "models": [model], "rules": rules, "output": store.root}
    for part, given in settings.items():
        if part not in ("run", "s3") or not isinstance(given, Mapping):
            raise JobError(
                f"--set {part}: adding a model accepts only run.* and s3.*; the dataset fixes everything else"
            )
        values[part] = {**values.get(part, {}), **given}
    job, fingerprint = check(resolve(values))
    if "weights_sha256" in model:  # only an expectation, which the commands that `verify` prints do not have
        plain = {name: value for name, value in model.items() if name != "weights_sha256"}
        _, fingerprint = check(resolve({**values, "models": [plain]}))
    (added,) = job.models
    if added.alias in taken:
        raise JobError(f"{store.root} already has a model with the alias {added.alias!r}; choose another with --alias")
    _check_no_score(store, added.alias)
    card = record_bytes(AddedModel(**added.model_dump(), fingerprint=fingerprint))
    name = f"columns/{added.alias}/{MODEL_CARD}"
    if not store.exists(name) and recorded_fingerprint(store, added.alias) not in (None, fingerprint):
        raise JobError(
            f"{store.path(f'columns/{added.alias}')} has columns of another model, other weights or another precision, "
            "and its card is lost; if a cluster made them, run the command there and without --dtype; otherwise choose "
            "another alias, or move this folder elsewhere first"
        )
    if not store.create(name, card) and read_card(store, added.alias).fingerprint != fingerprint:
        raise JobError(
            f"{store.path(name)}: this alias belongs to another model, other weights or another dtype; choose another "
            "alias"
        )
    try:
        _check_no_score(store, added.alias)  # again, because another run may have just added one
    except JobError:
        store.delete(name)
        raise
    return add_model_pipeline(job, plan.mapping, fingerprint)


def _check_no_score(store: Store, alias: str) -> None:
    if store.exists(f"columns/{alias}/{SCORE_CARD}"):
        raise JobError(f"{store.root} has a score named {alias!r}; choose another alias with --alias")
