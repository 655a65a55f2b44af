"""Defines the ledger of withdrawn rows, `withdrawn/`: what was asked, and the hashes of what went.

withdrawn/000001.request.parquet   the request: REQUEST_SCHEMA, with a PurgeRequest in its metadata. Create-only
withdrawn/000001.rows.parquet      the rows that it withdrew: WITHDRAWN_SCHEMA
withdrawn/000001.done.json         a PurgeDone, written last: without it, the purge is unfinished
withdrawn/parts/000000012.parquet  the rows of one shard, while a purge runs
withdrawn/running.json             the process that is withdrawing rows, while it runs
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
