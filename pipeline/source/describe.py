"""Describes a plan in text: shards, files, memory and columns. Suggests a better `shard_rows` if there is one."""

import os
from collections.abc import Mapping

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.encode.device import resolve_device
from pairmill.pipeline.source.mapping import ColumnMapping, ColumnPictures, IndexedPictures, PairsPictures
from pairmill.pipeline.source.planned import Plan, describe_formats, describe_left_out, describe_uncaptioned
from pairmill.schemas.job.run import ROWS_WORTH_AN_ACTOR, cpus_per_download_actor
from pairmill.schemas.jobs import BuildJob

_MAX_OBJECTS = 200_000
_STORED_PICTURE_BYTES = 30_000
_SHARDS_PER_ACTOR = 4


def describe_plan(plan: Plan, job: BuildJob) -> str:
    """The plan as text: shards, output files, memory per download actor, columns, a better `shard_rows` if there is
    one, a limit that it exceeds, detected formats, and skipped files."""
    told = [
        *_describe_limit(plan, job),
        *describe_formats(plan.inputs),
        *describe_uncaptioned(plan.inputs),
        *describe_left_out(plan.inputs),
    ]
    seen = describe_passed_over(plan.seen, plan.rows_in_inputs, plan.parts, plan.passed_over)
    return "\n".join([_describe_shards(plan, job), *told, *([seen] if seen else [])])


def describe_passed_over(seen: int, rows: int, parts: int, passed_over: Mapping[str, int]) -> str | None:
    """One line for people that accounts for every entry. None if every entry became a row."""
    if not parts and not passed_over:
        return None
    line = f"{counted(seen, 'entry')} in the input: {counted(rows, 'row')}"
    line += f", {counted(parts, 'part')} of rows (captions, further pictures of a name)" if parts else ""
    if not passed_over:
        return line
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(passed_over.items()))
    return f"{line}, {sum(passed_over.values()):,} passed over ({reasons})"


def _describe_shards(plan: Plan, job: BuildJob) -> str:
    if job.source.is_corpus:
        rows = f"{counted(plan.num_rows, 'row')} in {counted(plan.num_shards, 'shard')} of up to {job.shard_rows:,}"
        return f"{rows}: {plan.num_shards * 3:,} output files\n{_describe_pictures(plan.mapping)}"
    per_shard = 3 + (job.images.store != "none")
    objects = plan.num_shards * per_shard
    megabytes = job.shard_rows * _STORED_PICTURE_BYTES * _SHARDS_PER_ACTOR // 1_000_000
    text = (
        f"{counted(plan.num_rows, 'row')} in {counted(plan.num_shards, 'shard')} of up to {job.shard_rows:,}: "
        f"{objects:,} output files; about {megabytes:,} MB of pictures in memory per download actor\n"
        f"{_describe_columns(plan.mapping)}"
    )
    better = _better_shard_rows(plan, job, per_shard)
    return text if better is None else f"{text}\n{better}"


def _describe_limit(plan: Plan, job: BuildJob) -> list[str]:
    """One line if an earlier run planned more rows than the limit, else nothing."""
    limit = job.source.limit_rows
    if limit is None or plan.num_rows <= limit:
        return []
    return [
        f"limit of {counted(limit, 'row')}: no effect, because an earlier run planned {plan.num_rows:,}; to build "
        "fewer rows, use another output"
    ]


def _describe_pictures(mapping: ColumnMapping) -> str:
    """Say where the pictures of a corpus come from."""
    match mapping.pictures:
        case IndexedPictures():
            return "pictures from files, captions from the files beside them"
        case ColumnPictures(column):
            pictures = f"pictures from column {column!r}"
        case PairsPictures():
            pictures = "pictures of the output"
        case _:
            pictures = "no pictures, only captions"
    return f"{pictures}; {_describe_columns(mapping)}"


def _describe_columns(mapping: ColumnMapping) -> str:
    """A list of the columns in use, given or guessed."""
    names = {
        "URLs": mapping.url_column,
        "captions": mapping.caption_column,
        "ids": mapping.uid_column,
        "checksums": mapping.sha256_column,
        "licenses": mapping.license_column,
    }
    used = [f"{role} from column {name!r}" for role, name in names.items() if name]
    carried = len(mapping.extra_columns)
    return ", ".join([*used, *([] if mapping.has_captions else ["no captions"]), f"{carried} more carried through"])


def _better_shard_rows(plan: Plan, job: BuildJob, per_shard: int) -> str | None:
    advice = "shard_rows: {:,} would {}; it cannot change in an output folder that has a plan"
    if plan.num_shards * per_shard > _MAX_OBJECTS:
        needed = -(-plan.num_rows * per_shard // _MAX_OBJECTS)
        rows = min(-(-needed // 1_024) * 1_024, 1_000_000)
        if rows > job.shard_rows:
            return advice.format(rows, f"make {counted(-(-plan.num_rows // rows) * per_shard, 'file')}")
    workers = _download_actors(job)
    if workers is not None and plan.num_shards < workers and plan.num_rows >= workers * ROWS_WORTH_AN_ACTOR:
        rows = max(plan.num_rows // (workers * _SHARDS_PER_ACTOR), 64)
        if rows < job.shard_rows:
            return advice.format(rows, f"give each of {workers} download actors work")
    return None


def _download_actors(job: BuildJob) -> int | None:
    """Number of download actors; None if it depends on the cluster."""
    run = job.run
    if run.download_actors is not None or run.address is not None:
        return run.download_actors
    cpus = cpus_per_download_actor(beside_models=bool(job.models) and resolve_device(run) == "cpu")
    return max(int((os.cpu_count() or 1) / cpus), 1)
