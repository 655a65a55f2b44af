"""Rereads the output of a job and reports problems with the plan, counts, checksums, keys, indexes and some scores."""

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.check.added import check_added
from pairmill.pipeline.check.files import check_file
from pairmill.pipeline.check.known_filters import check_known
from pairmill.pipeline.check.other_files import check_other_files, check_sizes
from pairmill.pipeline.check.report import VerifyReport
from pairmill.pipeline.check.search_indexes import check_indexes
from pairmill.pipeline.check.subset_files import check_mixture, check_subsets
from pairmill.pipeline.columns.column_files import AddedFiles
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted, pairmill_command
from pairmill.pipeline.dataset.footers import footer_of
from pairmill.pipeline.dataset.manifests import DamagedManifestError, ManifestError, committed, read_manifest
from pairmill.pipeline.dataset.mixture import is_mixture, lost_record
from pairmill.pipeline.dataset.parquet import read_schema, read_table
from pairmill.pipeline.dataset.strays import DATA_FOLDERS, DATA_NAME, SIZES_NAME, tar_sizes
from pairmill.pipeline.dataset.webdataset_tar import read_tar
from pairmill.pipeline.dataset.withdrawn import unfinished_purges
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile, Shard, ShardManifest, manifest_name, shards_from_table
from pairmill.schemas.pairs import KEPT_STATUS
from pairmill.schemas.status import Status

MAX_PROBLEMS = 1_000

_NOT_PLANNED = "its shard is not in the plan"
_UID_NAME = re.compile(r"[0-9a-f]{32}\.")


def verify(store: Store, rescore: int = 64, on_step: OnStep = ignore_step) -> VerifyReport:
    """Check every committed shard and all files beside the shards, then recompute the scores of `rescore` pairs, spread
    evenly over the shards. Of a mixture, check its own files."""
    store.check_access()
    if is_mixture(store) or lost_record(store):
        return _verify_mixture(store, on_step)
    report = VerifyReport()
    plan = load_plan(store)
    scored: list[int] = []
    added = [AddedFiles.of(each) for each in check_added(store, report)]
    is_corpus = plan.job.source.is_corpus
    report.shards_missing = plan.num_shards - len(committed(store).keys() & set(range(plan.num_shards)))
    named, sizes, all_read = set[str](), dict[str, int](), True
    present = sorted(committed(store).items())
    for number, (shard, generation) in enumerate(present):
        on_step("reading shards", number, len(present))
        manifest = _read_manifest(store, manifest_name(shard, generation), shard < plan.num_shards, report)
        if manifest is None:
            all_read = False
            continue
        named.update(file.path for file in manifest.files.values())
        sizes |= tar_sizes(manifest, plan.job.images)
        if shard >= plan.num_shards:
            continue
        (planned,) = shards_from_table(plan.shards.slice(manifest.shard, 1))
        problems = [
            *_check_manifest(manifest, planned, plan.record.fingerprint),
            *_check_shard(store, manifest, report),
        ]
        if not problems:  # rebuilding a shard does not repair its added columns
            _add_problems(report, manifest, [problem for each in added if (problem := each.problem(manifest))])
        elif len(report.damaged) < MAX_PROBLEMS:
            report.damaged.extend(_to_delete(store, manifest))
        _add_problems(report, manifest, problems)
        if not problems and manifest.pairs and (is_corpus or "images" in manifest.files):
            scored.append(manifest.shard)
    if all_read and not report.shards_missing and not report.damaged:  # otherwise, files may belong to such shards
        report.problems.extend([*foreign_files(store, named), *check_sizes(store, sizes)])
    beside = [*check_known(store), *check_subsets(store, on_step), *check_indexes(store, on_step)]
    report.problems.extend([*beside, *check_other_files(store, plan), *_unfinished_purge(store)])
    if scored and rescore:
        _rescore_pairs(store, plan, scored, rescore, report, on_step)
    if rescore and not report.problems and present:
        _recompute_scores(store, rescore, report, on_step)
    return report


def _rescore_pairs(
    store: Store, plan: Plan, scored: Sequence[int], num_pairs: int, report: VerifyReport, on_step: OnStep
) -> None:
    from pairmill.pipeline.check.rescore import rescore_sample  # loads torch, so only if there are scores

    for manifest, problem in rescore_sample(store, plan, scored, num_pairs, report, on_step):
        report.problems.append(f"shard {manifest.shard:09d}: {problem}")
        if not plan.job.source.is_corpus:  # rebuilding a shard does not repair a corpus that has changed
            report.damaged.extend(_to_delete(store, manifest))


def _recompute_scores(store: Store, num_rows: int, report: VerifyReport, on_step: OnStep) -> None:
    from pairmill.pipeline.check.rescore_built import rescore_built
    from pairmill.pipeline.check.rescore_columns import rescore_columns  # loads torch

    report.problems.extend(rescore_built(Snapshot.of(store), num_rows, report, on_step))
    report.problems.extend(rescore_columns(Snapshot.of(store), num_rows, report, on_step))


def _verify_mixture(store: Store, on_step: OnStep) -> VerifyReport:
    mixture, problems = check_mixture(store, on_step)
    shards, rows = (sum(each.rows.shards for each in mixture.sources), mixture.num_rows) if mixture else (0, 0)
    return VerifyReport(shards=shards, rows=rows, pairs=rows, problems=list(problems))


def _unfinished_purge(store: Store) -> Iterator[str]:
    if unfinished_purges(store):
        yield f"a purge is not finished; finish it: {pairmill_command('purge', store.root)}"


def foreign_files(store: Store, named: set[str]) -> list[str]:
    """One problem for each file in the data folders of a finished output that is in no manifest, but that readers of
    a whole folder would mistake for data.

    `named`: paths of all files in manifests. The message says to delete a file only if pairmill certainly wrote it.
    """
    problems = []
    for folder in DATA_FOLDERS:
        for name in store.list(folder):
            path = f"{folder}/{name}"
            if path in named or path == SIZES_NAME or name.startswith((".", "_")):  # Arrow, Spark and others skip these
                continue
            if DATA_NAME.fullmatch(name) and _is_ours(store, path):
                problems.append(f"{path} is not in any manifest: a crashed run left it behind; delete it")
            else:
                problems.append(
                    f"{path} is not pairmill's, but readers of the folder would mistake it for data; move it elsewhere"
                )
    return problems[:MAX_PROBLEMS]


def _is_ours(store: Store, path: str) -> bool:
    """Whether pairmill wrote a file, judging by its content."""
    try:
        if not path.endswith(".tar"):
            return b"pairmill" in (read_schema(store, path).metadata or {})
        with store.open(path) as file:
            member, _, _ = next(read_tar(file))
            return _UID_NAME.match(member) is not None
    except (StopIteration, tarfile.TarError, pa.ArrowException, OSError):
        return False


def _read_manifest(store: Store, name: str, is_planned: bool, report: VerifyReport) -> ShardManifest | None:
    """The manifest. If it cannot be read, adds a problem to the report and returns None."""
    report.shards += is_planned
    try:
        manifest = read_manifest(store, name)
    except ManifestError as error:
        is_damaged = isinstance(error, DamagedManifestError)
        if is_planned or not is_damaged:
            report.problems.append(str(error))
        else:
            report.problems.append(f"manifests/{name} is not pairmill's: {_NOT_PLANNED}; move it elsewhere")
        if is_planned and is_damaged:
            report.damaged.extend(_manifests(store, name))
        return None
    if not is_planned:
        problem = f"manifests/{name} belongs to another dataset: {_NOT_PLANNED}; move it and its files elsewhere"
        report.problems.append(problem)
    return manifest


def _add_problems(report: VerifyReport, manifest: ShardManifest, problems: Sequence[str]) -> None:
    named = [f"shard {manifest.shard:09d}: {problem}" for problem in problems]
    report.problems.extend(named[: MAX_PROBLEMS - len(report.problems)])


def _to_delete(store: Store, manifest: ShardManifest) -> list[str]:
    """The files to delete before the shard is rebuilt. A rebuild writes generation 0, so files of a later generation
    would remain next to it, and readers of the whole folder would read each row twice."""
    files = [file.path for file in manifest.files.values()] if manifest.generation else []
    return [*_manifests(store, manifest.name), *filter(store.exists, files)]


def _manifests(store: Store, name: str) -> list[str]:
    """A shard's manifest, and those of its added columns, which do not belong to the pairs of a rebuilt shard."""
    added = (f"columns/{each}/manifests/{name}" for each in store.folders("columns"))
    return [f"manifests/{name}", *filter(store.exists, added)]


def _check_manifest(manifest: ShardManifest, planned: Shard, job_fingerprint: str) -> Iterator[str]:
    if (manifest.uri, manifest.first_row, manifest.num_rows) != (planned.uri, planned.first_row, planned.num_rows):
        yield "has different input rows than planned"
    if manifest.job_fingerprint != job_fingerprint:
        yield "was made by a different job"
    if sum(manifest.statuses.values()) != manifest.rows_in:
        yield f"its statuses sum to {sum(manifest.statuses.values()):,}, but it has {counted(manifest.rows_in, 'row')}"


def _check_shard(store: Store, manifest: ShardManifest, report: VerifyReport) -> Iterator[str]:
    for file in manifest.files.values():
        if problem := check_file(store, file):
            yield problem
            return
    pairs, rejects = (_read(store, manifest.files[name]) for name in ("pairs", "rejects"))
    report.rows += pairs.num_rows + rejects.num_rows
    report.pairs += pairs.num_rows
    for name, number, said in (
        ("pairs", pairs.num_rows, manifest.pairs),
        ("rejects", rejects.num_rows, manifest.rejects),
        ("rows_in", pairs.num_rows + rejects.num_rows + manifest.withdrawn, manifest.rows_in),
        ("kept", pc.sum(pairs["kept"]).as_py() or 0, manifest.kept),
        ("kept", pc.sum(pc.equal(pairs["status"], KEPT_STATUS)).as_py() or 0, manifest.kept),
    ):
        if number != said:
            yield f"{name} is {said:,} in the manifest but {number:,} in the files"
    stored = Counter(pairs["status"].to_pylist() + rejects["status"].to_pylist())
    if stored + Counter({Status.WITHDRAWN.value: manifest.withdrawn}) != Counter(manifest.statuses):
        yield "the statuses in the manifest and in the files differ"
    row_ids = pa.chunked_array([*pairs["row_id"].chunks, *rejects["row_id"].chunks], pa.string())
    if len(row_ids.unique()) != len(row_ids):
        yield "a row_id is not unique"
    if not pc.all(pc.starts_with(row_ids, f"{manifest.shard}:")).as_py() and len(row_ids):
        yield "a row_id belongs to another shard"
    if len(pairs["uid"].unique()) != pairs.num_rows:
        yield "a uid is not unique among the pairs"
    yield from _check_tar(store, manifest, pairs, report)


def _read(store: Store, file: DataFile) -> pa.Table:
    schema = read_schema(store, file.path)
    if footer_of(schema, store.path(file.path)).schema_version > SCHEMA_VERSION:
        raise ManifestError(f"{file.path} was written by a newer pairmill; update to read it")
    return read_table(store, file.path, [name for name in schema.names if "_embedding_" not in name])


def _check_tar(store: Store, manifest: ShardManifest, pairs: pa.Table, report: VerifyReport) -> Iterator[str]:
    """Check that the tar contains each stored picture where its row says, with caption and JSON, and nothing else.

    The pictures of a corpus are not stored in the output; rescoring reads a sample of them.
    """
    ours = pc.starts_with(pairs["image_tar"], "images/").fill_null(False)
    stored = pairs.filter(ours).select(["uid", "image_offset", "image_length"]).to_pylist()
    if "images" not in manifest.files:
        if stored:
            yield "rows refer to a tar, but the shard has none"
        return
    with store.open(manifest.files["images"].path) as file:
        members = {name: (offset, length) for name, offset, length in read_tar(file)}
    report.pictures += len(stored)
    if len(members) != 3 * len(stored):
        yield f"the tar has {counted(len(members), 'member')} for {counted(len(stored), 'picture')}"
    suffixes = {name.partition(".")[2] for name in members} - {"txt", "json"}
    (suffix,) = suffixes if len(suffixes) == 1 else ("?",)
    for row in stored:
        if members.get(f"{row['uid']}.{suffix}") != (row["image_offset"], row["image_length"]):
            yield f"picture {row['uid']} is not where its row says"
        if f"{row['uid']}.txt" not in members or f"{row['uid']}.json" not in members:
            yield f"picture {row['uid']} has no caption or JSON in the tar"
