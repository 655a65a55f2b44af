"""Splits the input into shards, once. Writes `plan/0.parquet`, and another file for each later extension.

Each row of a plan file is a shard. The file's metadata records the meaning of the columns and the input files that the
plan file adds. Plan files are create-only: if two drivers plan at the same time, one wins and the other reads the
winner's plan.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.delta_log import TableError, check_tables
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.snapshot_tables import refuse_snapshot_tables
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.web_files import WEB_SCHEMES
from pairmill.pipeline.dataset.output_folder import why_not_there
from pairmill.pipeline.source.columns import map_columns, misfit
from pairmill.pipeline.source.convert import convert, converted_name, inspect_text
from pairmill.pipeline.source.corpus.discover import Corpus
from pairmill.pipeline.source.corpus.json_fields import holds, type_of
from pairmill.pipeline.source.cursor import resolve
from pairmill.pipeline.source.files import InputFile, Inputs, SourceError, inspect_parquet, kind_of, list_inputs
from pairmill.pipeline.source.mapping import ColumnMapping, IndexedPictures
from pairmill.pipeline.source.planned import Plan, PlanError, PlannedInput, load, to_bytes
from pairmill.pipeline.source.shard_ends import shard_ends
from pairmill.pipeline.source.shared_urls import note_shared_urls
from pairmill.pipeline.source.unchanged import READERS, changed
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import PLAN_SCHEMA
from pairmill.schemas.mixture import MIXTURE_RECORD
from pairmill.schemas.passed_over import Tally
from pairmill.schemas.record import JobRecord

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_TRIES = 20
_OF_DEMO = "dataset"  # where `pairmill demo` puts its dataset, beside the input


class OtherJobError(PlanError):
    """The plan was made by another job; `record` is that job's record."""

    def __init__(self, record: JobRecord) -> None:
        super().__init__("the output folder was planned by another job; use another output")
        self.record = record


def load_plan(store: Store) -> Plan:
    """Load the plan of an output folder. Raises PlanError if there is none, or if it is incomplete or too new."""
    plan = load(store)
    if plan is None:
        if store.exists(MIXTURE_RECORD):
            raise PlanError(
                f"{store.root} is a mixture, which only `export`, `verify` and PairDataset read; choose one of its "
                "datasets"
            )
        if why := why_not_there(store):
            raise PlanError(why)
        if store.list("manifests"):
            raise PlanError(f"{store.path('plan')} is missing, but the dataset has shards; restore it from a copy")
        inside = f"; did you mean {store.path(_OF_DEMO)}?" if store.list(f"{_OF_DEMO}/plan") else ""
        raise PlanError(f"{store.root} has no plan: it is not the output folder of a build or embed{inside}")
    return plan


def make_plan(record: JobRecord, store: Store) -> Plan:
    """Plan the job's input, or extend an existing plan with input added since.

    `record` is stored in the plan, which ties the output folder to this job. Text formats are converted. Rows beyond
    `source.limit_rows` stay unplanned; lowering the limit later does not remove planned rows. Raises SourceError for
    unusable input, PlanError for a planned file that was changed or removed, and OtherJobError if another job made the
    plan.
    """
    corpus, found = _list(record.job, store)
    planner = _Planner(record, store, found, corpus)
    for _ in range(_TRIES):
        plan = load(store)
        if plan is not None and plan.record.fingerprint != record.fingerprint:
            raise OtherJobError(plan.record)
        addition = planner.first() if plan is None else planner.extend(plan)
        if plan is not None and addition is None:
            return plan
        if addition is not None:  # if the name is taken, another driver was faster: read its plan
            store.create(f"plan/{plan.num_files if plan else 0}.parquet", addition)
    raise PlanError(f"{store.root}/plan: other drivers keep extending this plan; run one at a time")


def unplanned(plan: Plan, job: BuildJob, store: Store) -> tuple[int, int]:
    """What `make_plan` would add to this plan: (rows of planned files that an earlier limit left out, other files that
    it would look for rows in). Raises SourceError for unusable input."""
    limit = math.inf if job.source.limit_rows is None else job.source.limit_rows
    rows = int(max(min(plan.rows_in_inputs, limit) - plan.num_rows, 0))
    if plan.num_rows + rows >= limit:
        return rows, 0
    _, found = _list(job, store)
    return rows, len({*found.files} - {file.source for file in plan.inputs})


def _list(job: BuildJob, store: Store) -> tuple[Corpus | None, Inputs]:
    if job.source.is_corpus:
        corpus = Corpus(job.source, store.files)
        return corpus, corpus.inputs(store.root)
    return None, list_inputs(job.source.paths, store.root, store.files)


@dataclass(frozen=True, slots=True)
class _Slice:
    """Rows of one file, to be split into shards. `rows_in_file` is None for a file that already has shards."""

    source: str
    uri: str
    first_row: int
    num_rows: int
    rows_in_file: int | None = None
    row_bytes: float = math.inf
    """Bytes of an average row; infinity if not known."""


@dataclass
class _Planner:
    """The state of one `make_plan` call; reused if another driver writes its plan first."""

    record: JobRecord
    store: Store
    found: Inputs
    corpus: Corpus | None
    fingerprints: dict[str, str] = field(default_factory=dict)
    inspected: dict[str, InputFile] = field(default_factory=dict)
    planned_uris: list[str] = field(default_factory=list)
    """Parquet files that already have rows in the plan."""
    without_rows: dict[str, Tally] = field(default_factory=dict)
    """Tars and folders that are not in the plan because they have no rows."""

    @property
    def job(self) -> BuildJob:
        """The job to plan."""
        return self.record.job

    def first(self) -> bytes:
        """`plan/0.parquet`."""
        self._check_tables()
        files = self._inspect(self.found.files)
        needs_license = bool(self.job.rules.license_allow)
        if self.corpus:
            mapping = self.corpus.mapping(files, needs_license)
        else:
            mapping = map_columns(self.job.source, files, needs_license)
        slices = self._slice_new(files, mapping, self.job.source.limit_rows)
        if self.corpus and isinstance(mapping.pictures, IndexedPictures):
            mapping = self.corpus.with_fields(mapping, [piece.uri for piece in slices], self.store)
        try:
            mapping.carried(self.job.images.carry)
        except ValueError as error:
            raise SourceError(str(error)) from None
        for name in mapping.extra.names:
            if name.lower() in self.job.score_columns.names:
                raise SourceError(
                    f"scores: the input has a column {name!r}, which a score would make; choose another score name"
                )
        return self._to_bytes(slices, replace(mapping, has_checksums=True), first_shard=0)

    def extend(self, plan: Plan) -> bytes | None:
        """The next plan file; None if there is nothing to add."""
        self._check_unchanged(plan)
        self.planned_uris = [file.uri for file in plan.inputs]
        limit = self.job.source.limit_rows
        budget = None if limit is None else max(limit - plan.num_rows, 0)
        slices = _continue_partial(plan, budget)
        budget = None if budget is None else budget - sum(piece.num_rows for piece in slices)
        known = {file.source for file in plan.inputs}
        unknown = [source for source in self.found.files if source not in known] if budget != 0 else []
        if unknown:
            self._check_tables()
        files = self._inspect(unknown)
        for file in files:
            fits = self.corpus.misfit if self.corpus else misfit
            if file.num_rows != 0 and (problem := fits(plan.mapping, file)):
                raise PlanError(f"{problem}; use another output for it")
        new = self._slice_new(files, plan.mapping, budget)
        for piece in new if self.corpus and plan.mapping.json_fields else []:
            if problem := self._unfit_field(plan.mapping, piece):
                raise PlanError(f"{problem}; use another output for it")
        slices += new
        return self._to_bytes(slices, plan.mapping, plan.num_shards) if slices else None

    def _check_tables(self) -> None:
        try:
            checked = check_tables(self.found.files, self.found.passed_over, self.store.files)
            refuse_snapshot_tables(self.found.in_folders, self.found.passed_over, checked, self.store.files)
        except TableError as error:
            raise SourceError(str(error)) from error

    def _unfit_field(self, mapping: ColumnMapping, piece: _Slice) -> str | None:
        """Why values in a new file's JSON do not fit the plan's columns; None if they all fit."""
        assert self.corpus is not None
        types = dict(zip(mapping.extra_columns, mapping.extra.types, strict=True))
        for name, kinds in self.corpus.fields(piece.uri, self.store).kinds.items():
            planned = types.get(mapping.json_fields.get(name, ""))
            if planned is not None and kinds and type_of(kinds) != planned and not holds(planned, kinds):
                return f"{piece.source}: {name!r} in the JSON is {type_of(kinds)}, but {planned} in this output's plan"
        return None

    def _check_unchanged(self, plan: Plan) -> None:
        listed, root = set(self.found.files), self.store.root
        for known in plan.inputs:
            if known.source not in listed:
                raise PlanError(
                    f"{known.source}: is in the plan of {root}, but is missing or no longer in source.paths; "
                    f"put it back, or use another output"
                )
        self._hash(known.source for known in plan.inputs)
        for known in plan.inputs:
            if self.fingerprints[known.source] != known.fingerprint:
                raise changed(known, self.store)
            if known.uri != known.source and not self.store.exists(known.uri):
                raise PlanError(f"{root}/{known.uri}: is missing; it was made from {known.source}. Use another output")

    def _inspect(self, sources: Sequence[str]) -> list[InputFile]:
        unseen = [source for source in sources if source not in self.inspected]
        files, config = self.store.files, self.job.source
        inspect = self.corpus.inspect if self.corpus else partial(_inspect, files=files, config=config)
        self.inspected.update(zip(unseen, self._map(inspect, unseen), strict=True))
        return [self.inspected[source] for source in sources]

    def _map(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
        """The results, in order. Uses threads, unless there are web servers among the sources: Ctrl-C waits for
        threads, and these for servers that may send nothing for a minute."""
        if any(uri.startswith(WEB_SCHEMES) for uri in self.found.files):
            return list(map(function, items))
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(function, items))

    def _hash(self, sources: Iterable[str]) -> None:
        """Compute the missing fingerprints. Hashing releases the GIL, so threads help."""
        missing = [source for source in sources if source not in self.fingerprints]
        self.fingerprints.update(zip(missing, self._map(self._fingerprint, missing), strict=True))

    def _fingerprint(self, source: str) -> str:
        return self.corpus.fingerprint(source) if self.corpus else self.store.files.fingerprint(source)

    def _slice_new(self, files: Sequence[InputFile], mapping: ColumnMapping, budget: int | None) -> list[_Slice]:
        slices = []
        converted = self._convert_all(files, mapping) if budget is None else {}
        for file in files:
            if budget == 0:
                break
            if file.num_rows == 0:
                continue
            if file.kind == "parquet":
                uri, parquet = file.uri, file
            else:
                uri, parquet = converted.get(file.uri) or self._convert(file, mapping)
            rows_in_file = parquet.num_rows
            assert rows_in_file is not None
            num_rows = rows_in_file if budget is None else min(budget, rows_in_file)
            if not rows_in_file and self.corpus and file.kind == "index":
                self.without_rows[file.uri] = self.corpus.tally(uri, self.store)
            if num_rows:
                slices.append(_Slice(file.uri, uri, 0, num_rows, rows_in_file, parquet.row_bytes))
            budget = None if budget is None else budget - num_rows
        return slices

    def _convert_all(self, files: Sequence[InputFile], mapping: ColumnMapping) -> dict[str, tuple[str, InputFile]]:
        """Convert several files concurrently: indexing tars on S3 mostly means waiting for headers."""
        to_convert = [file for file in files if file.kind != "parquet" and file.num_rows != 0]
        self._hash(file.uri for file in to_convert)
        results = self._map(lambda file: self._convert(file, mapping), to_convert)
        return {file.uri: result for file, result in zip(to_convert, results, strict=True)}

    def _convert(self, file: InputFile, mapping: ColumnMapping) -> tuple[str, InputFile]:
        """The converted file, and its name in the output folder."""
        self._hash([file.uri])
        name_of = self.corpus.converted_name if self.corpus else converted_name
        name = name_of(file, self.fingerprints[file.uri], mapping, self.job.shard_rows)
        if not self.store.exists(name):
            (self.corpus.convert if self.corpus else convert)(file, name, mapping, self.job.shard_rows, self.store)
            if self._fingerprint(file.uri) != self.fingerprints[file.uri]:
                self.store.delete(name)
                raise SourceError(f"{file.uri}: changed while it was being read; start again when it is complete")
        return name, inspect_parquet(resolve(self.store, name), self.store.files)

    def _to_bytes(self, slices: Sequence[_Slice], mapping: ColumnMapping, first_shard: int) -> bytes:
        if not slices:
            raise SourceError("source.paths: the input has no rows")
        self._hash(piece.source for piece in slices)
        tables, inputs = [], []
        uris = [*self.planned_uris, *(piece.uri for piece in slices)]
        mapping = replace(mapping, shared_urls=note_shared_urls(self.store, uris, mapping))
        all_ends = self._map(self._ends, slices)
        for piece, ends in zip(slices, all_ends, strict=True):
            fingerprint = self.fingerprints[piece.source]
            table = _cut(piece, fingerprint, ends, first_shard)
            first_shard += table.num_rows
            tables.append(table)
            if piece.rows_in_file is not None:
                file = self.inspected[piece.source]
                planned = PlannedInput(
                    piece.source,
                    piece.uri,
                    fingerprint,
                    piece.rows_in_file,
                    file.unusual_encoding,
                    file.unusual_delimiter,
                )
                if self.corpus and file.kind == "index":
                    tally = self.corpus.tally(piece.uri, self.store)
                    planned = replace(
                        planned,
                        parts=tally.parts,
                        passed_over=dict(tally.passed_over),
                        uncaptioned=tally.uncaptioned,
                        json_keys=tally.json_keys,
                        left_out_fields=self._left_out_fields(piece.uri, mapping),
                    )
                inputs.append(planned)
        passed_over = self.found.counts()
        for tally in self.without_rows.values():
            passed_over += tally.passed_over
        return to_bytes(pa.concat_tables(tables), mapping, inputs, self.record, passed_over)

    def _left_out_fields(self, uri: str, mapping: ColumnMapping) -> int:
        """Number of values left out of an index, plus the number of its JSON fields that have no column in the plan."""
        assert self.corpus is not None
        notes = self.corpus.fields(uri, self.store)
        return notes.left_out + len([name for name in notes.columns() if name not in mapping.json_fields])

    def _ends(self, piece: _Slice) -> Sequence[int]:
        """The end row (exclusive) of each shard of a slice. The last shard gets the remainder."""
        uri, rows = resolve(self.store, piece.uri), range(piece.first_row, piece.first_row + piece.num_rows)
        return shard_ends(uri, self.store.files, rows, self.job.shard_rows, piece.row_bytes)


def _inspect(uri: str, files: Files, config: SourceConfig) -> InputFile:
    kind = kind_of(uri)
    return inspect_parquet(uri, files) if kind == "parquet" else inspect_text(uri, kind, files, config)


def _continue_partial(plan: Plan, budget: int | None) -> list[_Slice]:
    """The rows of planned files that limit_rows left unplanned."""
    planned = plan.shards.group_by("uri").aggregate([("num_rows", "sum")])
    done = dict(zip(planned["uri"].to_pylist(), planned["num_rows_sum"].to_pylist(), strict=True))
    slices = []
    for file in plan.inputs:
        num_rows = file.num_rows - done[file.uri]
        num_rows = num_rows if budget is None else min(budget, num_rows)
        if num_rows > 0:
            slices.append(_Slice(file.source, file.uri, done[file.uri], num_rows))
            budget = None if budget is None else budget - num_rows
    return slices


def _cut(piece: _Slice, fingerprint: str, ends: Sequence[int], first_shard: int) -> pa.Table:
    """One row of PLAN_SCHEMA for each shard. `ends`: the end row (exclusive) of each shard."""
    first_rows = np.array([piece.first_row, *ends[:-1]], np.int64)
    num_shards = len(first_rows)
    columns = [
        pa.array(np.arange(first_shard, first_shard + num_shards)),
        pa.repeat(piece.uri, num_shards),
        pa.array(first_rows),
        pa.array(np.array(ends, np.int64) - first_rows),
        pa.repeat(fingerprint, num_shards),
    ]
    return pa.Table.from_arrays(columns, schema=PLAN_SCHEMA)
