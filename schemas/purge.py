"""Defines the ledger of withdrawn rows, `withdrawn/`: the requests, and the hashes of the rows that were withdrawn.

withdrawn/000001.request.parquet   the request: REQUEST_SCHEMA, with a PurgeRequest in its metadata. Create-only
withdrawn/000001.purged.json       what the purge changed and deleted: a Purged, which grows while the purge runs
withdrawn/000001.rows.parquet      the rows that the purge withdrew: WITHDRAWN_SCHEMA
withdrawn/000001.done.json         a PurgeDone, written last: without it, the purge is unfinished
withdrawn/parts/000000012.parquet  the withdrawn rows of one shard, while a purge runs
withdrawn/running-UUID.json        a RunningPurge: the process that is withdrawing rows, while it runs

Requests are finished in order. If an earlier purge was interrupted, the next one finishes it first, so the result is
the same as without the interruption.
"""

from typing import Literal, get_args

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pairmill.schemas.manifest import SCHEMA_VERSION
from pairmill.schemas.settings import Settings

ListKind = Literal["uid", "url", "host", "sha256", "pdq"]
"""The kinds of values in a list of rows to withdraw."""
LIST_KINDS: tuple[ListKind, ...] = get_args(ListKind)

Matching = Literal["exact", "named"]
"""How the URLs and hosts of a request are compared. `exact`: with the URLs of a row, their hosts, and the URLs and
hosts in its message. `named`: also with the URLs and hosts within these, in every spelling. A request keeps its
matching, so that a new version withdraws no rows that its user did not expect."""

MAX_REASON_CHARS = 1_000

DIGEST = pa.binary(32)

REQUEST_SCHEMA = pa.schema([pa.field("kind", pa.string(), nullable=False), pa.field("digest", DIGEST, nullable=False)])
"""One row per value of the request: the SHA-256 of `KIND NUL VALUE`, with the value in canonical form. PDQ hashes are
stored as they are, because they are compared by distance."""

WITHDRAWN_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),  # a position in the plan, which says nothing about the row
        pa.field("uid", DIGEST, nullable=False),
        pa.field("captions", pa.list_(DIGEST), nullable=False),  # as given, cleaned, and written by models
        pa.field("pictures", pa.list_(DIGEST), nullable=False),  # the stored bytes
        pa.field("vectors", pa.list_(DIGEST), nullable=False),  # float16 embeddings of all models
    ]
)
"""One row per withdrawn row. Digests are the SHA-256 of `NAME NUL BYTES`."""


class PurgeRequest(BaseModel):
    """A request to withdraw rows, with the reason."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    number: int
    requested_at: str
    """ISO 8601, in UTC."""
    reason: str
    values: dict[str, int]
    """Kind -> number of values."""
    matching: Matching = "exact"
    """Earlier versions did not record it."""
    exports: list[str] = []
    """Exports to purge that the dataset has no record of, as absolute paths or URLs."""


class ExportPurge(BaseModel):
    """The outcome of a purge for one export."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str
    outcome: Literal["nothing to withdraw", "rewritten", "unfinished", "not found", "damaged", "known"]
    """`unfinished`: the export was interrupted; its finished parts were purged and the rest was deleted. `damaged`:
    some files are missing or differ from what was exported; these were left as they are, and all others were purged.
    `known`: a dry run, which does not open exports."""
    rows: int = 0
    """Rows that were removed."""

    @property
    def may_keep_rows(self) -> bool:
        """Whether the export may still contain withdrawn rows."""
        return self.outcome in ("not found", "damaged")


class Purged(BaseModel):
    """What a purge did or, in a dry run, would do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = 0
    """Rows that were withdrawn: pairs and rejects."""
    not_compared: int = 0
    """Pairs without a readable PDQ hash, which a request with PDQ hashes could not compare."""
    shards: list[int] = []
    """Shards that contained withdrawn rows and were rewritten."""
    subsets: list[str] = []
    inputs: list[str] = []
    """Files of `input/` in which rows were blanked, or which were deleted because the plan does not use them."""
    labels: list[str] = []
    indexes: list[str] = []
    """Search indexes that lost parts."""
    scores: dict[str, str] = {}
    """Names of deleted scores -> their settings, as for `score --score`. Scores are deleted if they compared rows with
    withdrawn rows, summarize all pairs, some of which were withdrawn, or were computed from such a score."""
    reports: list[str] = []
    failures: int = 0
    """Tracebacks of failed shards that were deleted."""
    exports: list[ExportPurge] = []
    files_deleted: int = 0
    """Number of deleted files of old generations and of interrupted commands."""
    named_in_steps: list[str] = []
    """Subsets whose steps contain a withdrawn value, such as `where: url != '..'`. The value stays until the subset is
    deleted or selected again with other steps."""


class PurgeDone(BaseModel):
    """`withdrawn/NUMBER.done.json`: the purge is finished."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    number: int
    finished_at: str
    rows: int
    """Rows that were withdrawn."""


class RunningPurge(BaseModel):
    """`withdrawn/running-UUID.json`: the process that is withdrawing rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    pid: int
    started_at: str


class ExportNote(Settings):
    """`exports/DIGEST.json` in a dataset: the location of an export, so that a purge can find it."""

    schema_version: int = SCHEMA_VERSION
    output: str
    """Absolute path or URL."""
    subset: str
    format: str
