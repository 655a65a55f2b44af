"""Defines the ledger of withdrawn rows, `withdrawn/`: what was asked, and the hashes of what went.

withdrawn/000001.request.parquet   the request: REQUEST_SCHEMA, with a PurgeRequest in its metadata. Create-only
withdrawn/000001.purged.json       what it changed and deleted: a Purged, which grows while a purge runs
withdrawn/000001.rows.parquet      the rows that it withdrew: WITHDRAWN_SCHEMA
withdrawn/000001.done.json         a PurgeDone, written last: without it, the purge is unfinished
withdrawn/parts/000000012.parquet  the rows of one shard, while a purge runs
withdrawn/running-UUID.json        a process that is withdrawing rows, while it runs

Requests are finished one after another, in order. So a purge that finishes an earlier one first ends in the same state
as if that one had not been interrupted.
"""

from typing import Literal, get_args

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pairmill.schemas.manifest import SCHEMA_VERSION
from pairmill.schemas.settings import Settings

ListKind = Literal["uid", "url", "host", "sha256", "pdq"]
"""What the values of a list are."""
LIST_KINDS: tuple[ListKind, ...] = get_args(ListKind)

MAX_REASON_CHARS = 1_000

DIGEST = pa.binary(32)

REQUEST_SCHEMA = pa.schema([pa.field("kind", pa.string(), nullable=False), pa.field("digest", DIGEST, nullable=False)])
"""One row per value of the request: SHA-256 of `KIND NUL VALUE`, the value in its canonical form; for a PDQ hash, the
hash itself, because it is compared by distance."""

WITHDRAWN_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),  # a position in the plan, which says nothing about the row
        pa.field("uid", DIGEST, nullable=False),
        pa.field("captions", pa.list_(DIGEST), nullable=False),  # as given, cleaned, and written by models
        pa.field("pictures", pa.list_(DIGEST), nullable=False),  # the stored bytes
        pa.field("vectors", pa.list_(DIGEST), nullable=False),  # float16 embeddings of all models
    ]
)
"""One row per withdrawn row, with SHA-256 digests of `NAME NUL BYTES`."""


class PurgeRequest(BaseModel):
    """What somebody asked to withdraw, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    number: int
    requested_at: str
    """ISO 8601, in UTC."""
    reason: str
    values: dict[str, int]
    """Kind -> number of values."""
    exports: list[str] = []
    """Exports to purge that the dataset does not know of: absolute paths or URLs."""


class ExportPurge(BaseModel):
    """What became of an export."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str
    outcome: Literal["nothing to withdraw", "rewritten", "unfinished", "not found", "damaged", "known"]
    """`unfinished`: the export was interrupted. What it had finished was purged, and the rest deleted. `damaged`: files
    are missing or differ from what was exported. Those were left as they are, and all others purged. `known`: of a dry
    run, which does not look into exports."""
    rows: int = 0
    """Rows that went."""

    @property
    def may_keep_rows(self) -> bool:
        """Whether withdrawn rows may be left in it."""
        return self.outcome in ("not found", "damaged")


class Purged(BaseModel):
    """What a purge did, or with a dry run would do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = 0
    """Rows that were withdrawn: pairs and rejects."""
    shards: list[int] = []
    """Shards that held them, which were rewritten."""
    subsets: list[str] = []
    inputs: list[str] = []
    """Files of `input/` in which rows were blanked, or that the plan does not use."""
    labels: list[str] = []
    indexes: list[str] = []
    """Search indexes that lost parts."""
    scores: dict[str, str] = {}
    """Scores that were deleted, because they were computed in relation to withdrawn rows, or are made from such a score
    -> their settings, as after `score --score`."""
    reports: list[str] = []
    failures: int = 0
    """Tracebacks of failed shards that were deleted."""
    exports: list[ExportPurge] = []
    files_deleted: int = 0
    """Files of old generations, and files that interrupted commands left."""
    named_in_steps: list[str] = []
    """Subsets whose steps name a withdrawn value, such as `where: url != '..'`. They keep it until they are selected
    again with other steps, or deleted."""


class PurgeDone(BaseModel):
    """`withdrawn/NUMBER.done.json`: the purge is finished."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    number: int
    finished_at: str
    rows: int
    """Rows that were withdrawn."""


class RunningPurge(BaseModel):
    """`withdrawn/running.json`: the process that withdraws rows now."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    pid: int
    started_at: str


class ExportNote(Settings):
    """`exports/DIGEST.json` in a dataset: where an export of it is, so that a purge finds it."""

    schema_version: int = SCHEMA_VERSION
    output: str
    """Absolute path or URL."""
    subset: str
    format: str
