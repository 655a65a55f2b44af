"""Defines shards, plans and manifests: how a job is split into units of work, and how a finished unit is recorded.

A shard exists if and only if its manifest does. Readers trust only manifests.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from pairmill.schemas.status import Status, Step

SCHEMA_VERSION = 1
"""Version of all files that a job writes. Readers accept this version and the previous one, and refuse newer ones."""

PLAN_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
    ]
)
"""`plan/K.parquet`: one row per shard. `uri` is the Parquet file with the shard's rows."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A fixed slice of the input: rows [first_row, first_row + num_rows) of one Parquet file."""

    shard: int
    uri: str
    first_row: int
    num_rows: int
    fingerprint: str

    @property
    def name(self) -> str:
        """The shard number in nine digits, as in its file names."""
        return shard_name(self.shard)

    def to_table(self) -> pa.Table:
        """One row of PLAN_SCHEMA."""
        return pa.Table.from_pylist([asdict(self)], schema=PLAN_SCHEMA)


def shard_name(shard: int) -> str:
    """The shard number in nine digits, so that names of up to a billion shards sort as text."""
    return f"{shard:09d}"


def shards_from_table(plan: pa.Table) -> list[Shard]:
    """The shards of a plan table, in the order of its rows."""
    return [Shard(**row) for row in plan.select(PLAN_SCHEMA.names).to_pylist()]


class DataFile(BaseModel):
    """One data file of a shard, as recorded in its manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """Path relative to the output folder, separated by `/`."""
    num_bytes: int
    blake2b: str
    """BLAKE2b-128 of the content, 32 hex characters."""


class CustomRuleCount(BaseModel):
    """The number of rows that a custom rule dropped."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Step
    """The step in which the rule ran."""
    rows: int


class ShardManifest(BaseModel):
    """The record of one committed shard, written last and create-only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    shard: int
    generation: int = 0
    attempt: str
    """Random id of the attempt that wrote the manifest. It distinguishes "we won, but the reply was lost" from "another
    worker won"."""
    uri: str
    first_row: int
    num_rows: int
    """Input rows of the slice. A row with a list of captions counts once here, and once per caption in `rows_in`."""
    rows_in: int
    pairs: int
    rejects: int
    kept: int
    statuses: dict[str, int]
    """Status -> number of rows. The sum is `rows_in`. Rows with the status `withdrawn` are in none of the files."""
    job_fingerprint: str
    files: dict[Literal["pairs", "rejects", "images"], DataFile]
    """`images` is absent if no picture was stored."""
    seconds: dict[str, float]
    """Stage -> wall seconds."""
    bytes_fetched: int
    versions: dict[str, str]
    custom_rules: dict[str, CustomRuleCount] = {}
    """Name of a custom rule -> the rows with the status `custom_rule` that it dropped. Not written if empty. Duplicates
    of a row that a rule on scores dropped count as `duplicate_in_shard`."""

    @model_serializer(mode="wrap")
    def _without_empty_rules(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        values: dict[str, object] = serialize(self)
        if not self.custom_rules:
            del values["custom_rules"]
        return values

    @property
    def withdrawn(self) -> int:
        """Rows that were withdrawn and are stored nowhere: rows_in = pairs + rejects + withdrawn."""
        return self.statuses.get(Status.WITHDRAWN.value, 0)

    @property
    def name(self) -> str:
        """File name under `manifests/`."""
        return manifest_name(self.shard, self.generation)


class ColumnsManifest(BaseModel):
    """`columns/ALIAS/manifests/NAME.json`: the record of an added model's columns for one shard. Create-only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    shard: int
    generation: int
    """Generation of the shard. The rows are in the order of its pairs file."""
    pairs_blake2b: str
    rows: int
    file: DataFile
    job_fingerprint: str
    pictures_left_out: int = 0
    """Pictures without an embedding: missing, changed since the dataset was made, or not supported by the model."""

    @property
    def name(self) -> str:
        """File name under `manifests/`."""
        return manifest_name(self.shard, self.generation)


def manifest_name(shard: int, generation: int = 0) -> str:
    """`000000012.json`, or `000000012.g1.json` for a later generation. The highest generation is current."""
    return f"{shard_name(shard)}.json" if generation == 0 else f"{shard_name(shard)}.g{generation}.json"


def parse_manifest_name(name: str) -> tuple[int, int]:
    """(shard, generation) of a manifest's file name. Raises ValueError for any other name."""
    stem, dot_json, rest = name.partition(".json")
    shard, _, generation = stem.partition(".g")
    if not dot_json or rest or not shard.isdigit() or (generation and not generation.isdigit()):
        raise ValueError(f"not the name of a manifest: {name!r}")
    parsed = int(shard), int(generation or 0)
    if manifest_name(*parsed) != name:  # such as `7.json`, or digits of another script
        raise ValueError(f"not the name of a manifest: {name!r}")
    return parsed
