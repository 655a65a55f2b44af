"""Reads and writes `plan/K.parquet`.

Each row is a shard. The metadata records the meaning of the columns (the same in every file) and the input files that
this plan file adds.
"""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.integrity import DamagedFileError
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.source.files import shown
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import PLAN_SCHEMA, SCHEMA_VERSION
from pairmill.schemas.record import JobRecord

_METADATA_KEY = b"pairmill"
_NOTHING: Mapping[str, int] = {}


class PlanError(PairmillError, ValueError):
    """The plan is missing or unusable, or the input is no longer the planned one; the message says what is wrong."""

    kind = FailureKind.INPUT


@dataclass(frozen=True, slots=True)
class PlannedInput:
    """An input file that has shards in the plan."""

    source: str
    """Absolute path or URL of the file that the user gave."""
    uri: str
    """The Parquet file to read: `source` itself, or `input/NAME` in the output folder."""
    fingerprint: str
    """Fingerprint of `source`."""
    num_rows: int
    """Number of rows in the file, planned or not."""
    encoding: str | None = None
    """Encoding of a text file, if not UTF-8."""
    delimiter: str | None = None
    """Delimiter of a CSV or TSV file, if not the usual one for its extension."""
    parts: int = 0
    """Entries of a tar or folder that belong to another entry's row, such as captions."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Reason -> number of unused entries in a tar or folder."""
    uncaptioned: int = 0
    """Number of rows of a tar or folder that have JSON but no caption."""
    json_keys: Sequence[str] = ()
    """Some of the keys in the JSON of those rows."""
    left_out_fields: int = 0
    """Number of values in the JSON of a tar or folder that are in no column."""


@dataclass(frozen=True)
class Plan:
    """All shards of an output folder in order, and the meaning of their columns."""

    shards: pa.Table
    """PLAN_SCHEMA; shard numbers count from 0."""
    mapping: ColumnMapping
    inputs: tuple[PlannedInput, ...]
    num_files: int
    """Number of plan files, `plan/K.parquet`."""
    record: JobRecord
    """The record of the job that made this plan. `job.yaml` is a copy for people."""
    unplanned: Mapping[str, int] = field(default_factory=dict)
    """Reason -> number of files and folders in `source.paths` that were left out when the plan was last extended."""

    @property
    def rows_in_inputs(self) -> int:
        """Number of rows in all planned files, whether or not the rows are planned."""
        return sum(file.num_rows for file in self.inputs)

    @property
    def parts(self) -> int:
        """Entries of tars and folders that belong to another entry's row, such as captions."""
        return sum(file.parts for file in self.inputs)

    @property
    def passed_over(self) -> dict[str, int]:
        """Reason -> number of inputs that are neither a row nor part of a row."""
        total: Counter[str] = Counter(self.unplanned)
        for file in self.inputs:
            total.update(file.passed_over)
        return dict(sorted(total.items()))

    @property
    def seen(self) -> int:
        """Number of files, members and records found in the input: rows, parts of rows, and skipped entries."""
        return self.rows_in_inputs + self.parts + sum(self.passed_over.values())

    @property
    def job(self) -> BuildJob:
        """The job that made this plan."""
        return self.record.job

    @property
    def num_rows(self) -> int:
        """Input rows of all shards."""
        return int(pc.sum(self.shards["num_rows"]).as_py() or 0)

    @property
    def num_shards(self) -> int:
        """Shards of all plan files."""
        return int(self.shards.num_rows)


def load(store: Store) -> Plan | None:
    """Load the plan of an output folder; None if there is none. Raises PlanError if it is damaged or too new."""
    names = store.list("plan")
    numbers = sorted(int(name.removesuffix(".parquet")) for name in names if name.removesuffix(".parquet").isdigit())
    if not numbers:
        return None
    if numbers != list(range(len(numbers))):
        raise PlanError(f"{store.root}/plan: files are missing between {numbers[0]}.parquet and {numbers[-1]}.parquet")
    tables, inputs = [], []
    mapping, record = None, None
    unplanned: Mapping[str, int] = _NOTHING
    for number in numbers:
        table, metadata = _load_file(store, f"plan/{number}.parquet")
        tables.append(table)
        inputs += [PlannedInput(**values) for values in metadata["inputs"]]
        newest = ColumnMapping.from_json(metadata["facts"])
        mapping = replace(mapping or newest, shared_urls=newest.shared_urls)
        record = record or _record(store, f"{number}.parquet", metadata["job"])
        unplanned = metadata.get("passed_over", unplanned)
    assert mapping is not None and record is not None
    shards = pa.concat_tables(tables).combine_chunks()
    if not shards["shard"].equals(pa.chunked_array([pa.array(np.arange(shards.num_rows))])):
        raise PlanError(f"{store.root}/plan: the shards are not numbered from 0 without gaps")
    return Plan(shards, mapping, tuple(inputs), len(numbers), record, unplanned)


def _load_file(store: Store, name: str) -> tuple[pa.Table, dict[str, Any]]:
    try:
        table = read_table(store, name)
        metadata = json.loads(table.schema.metadata[_METADATA_KEY])
    except DamagedFileError as error:
        raise PlanError(f"{error}; restore it from a copy") from error
    except (pa.ArrowException, KeyError, TypeError, ValueError, RecursionError) as error:
        raise PlanError(f"{store.path(name)}: is not a plan file, or is damaged: {error}") from error
    if metadata["schema_version"] > SCHEMA_VERSION:
        raise PlanError(f"{store.path(name)}: written by a newer pairmill (version {metadata['schema_version']})")
    return table.replace_schema_metadata(None).cast(PLAN_SCHEMA), metadata


def _record(store: Store, name: str, values: dict[str, Any]) -> JobRecord:
    try:
        return JobRecord.from_json(values)
    except (KeyError, ValueError) as error:
        raise PlanError(f"{store.path(f'plan/{name}')}: {error}") from error


def to_bytes(
    shards: pa.Table,
    mapping: ColumnMapping,
    inputs: Sequence[PlannedInput],
    record: JobRecord,
    passed_over: Mapping[str, int] = _NOTHING,
) -> bytes:
    """The content of a plan file that adds `shards` and `inputs`. `passed_over`: reason -> number of listed files and
    folders that were not planned."""
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "job": record.to_json(),
        "facts": mapping.to_json(),
        "inputs": [_without_nulls(file) for file in inputs],
        "passed_over": dict(passed_over),
    }
    data = io.BytesIO()
    pq.write_table(shards.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)}), data, compression="zstd")
    return data.getvalue()


def describe_uncaptioned(inputs: Sequence[PlannedInput]) -> list[str]:
    """One line if some JSON beside pictures has no caption under the usual keys, else nothing."""
    rows = sum(file.uncaptioned for file in inputs)
    if not rows:
        return []
    keys = dict.fromkeys(key for file in inputs for key in file.json_keys)
    return [
        f"{counted(rows, 'row')} with JSON or a metadata table entry, but no caption under the usual keys; to use "
        f"another key, set source.caption_column (keys found: {shown(list(keys))})"
    ]


def describe_left_out(inputs: Sequence[PlannedInput]) -> list[str]:
    """One line if some values of the JSON beside pictures are in no column, else nothing."""
    values = sum(file.left_out_fields for file in inputs)
    return (
        [f"{counted(values, 'JSON value')} beside pictures left out (too large, too many or not UTF-8)"]
        if values
        else []
    )


def describe_formats(inputs: Sequence[PlannedInput]) -> list[str]:
    """One line for each encoding or delimiter that is not the usual one for the file's extension."""
    files: dict[str, list[str]] = {}
    for file in inputs:
        delimiter = f"fields separated by {file.delimiter!r}" if file.delimiter else None
        encoding = f"encoding {file.encoding}" if file.encoding else None
        if parts := [part for part in (encoding, delimiter) if part]:
            files.setdefault(", ".join(parts), []).append(file.source.rpartition("/")[2])
    return [
        f"{names[0]}{f' and {len(names) - 1:,} more' if names[1:] else ''}: {reading}"
        for reading, names in files.items()
    ]


def _without_nulls(file: PlannedInput) -> dict[str, object]:
    return {name: value for name, value in asdict(file).items() if value not in (None, 0, {}, ()) or name == "num_rows"}
