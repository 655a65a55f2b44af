"""Reads and writes the ledger: the requests, and the hashes of the rows that they withdrew."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import DamagedManifestError, record_bytes
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.dataset.withdrawn import PARTS, done_name, ledger_files, request_name, rows_name
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.keys import key
from pairmill.pipeline.purge.lists import Values
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.purge import (
    LIST_KINDS,
    REQUEST_SCHEMA,
    WITHDRAWN_SCHEMA,
    ListKind,
    PurgeDone,
    PurgeRequest,
)

_METADATA_KEY = b"pairmill"
_TRIES = 100


@dataclass(frozen=True)
class Ledger:
    """All requests combined. Contains only plain values, so that it can be sent to workers."""

    asked: Mapping[ListKind, DigestSet]
    """The hashes of the values that were requested; those of `pdq` are the PDQ hashes themselves."""
    uids: DigestSet
    """The digests of the uids that were requested, and of all rows that were withdrawn for any reason: the same pair in
    another shard must go too, even if its picture could not be fetched there."""
    row_ids: frozenset[str]
    """The positions of the withdrawn rows in the plan."""
    named: Mapping[ListKind, DigestSet]
    """The values among `asked` of the requests with the matching `named`."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever withdrawn."""
        return not any(len(each) for each in self.asked.values()) and not len(self.uids)

    @classmethod
    def load(cls, store: Store, last: int | None = None) -> "Ledger":
        """Read the ledger of an output folder, and the parts of a running or interrupted purge. `last`: the number of
        the last request to include."""
        if not (files := ledger_files(store))["request"]:
            return cls(_asked([]), DigestSet.of([]), frozenset(), _asked([]))
        numbers = [number for number in files["request"] if last is None or number <= last]
        requests = {number: read_table(store, request_name(number)) for number in numbers}
        asked = _asked(requests.values())
        is_named = {number: _described(store, number, table).matching == "named" for number, table in requests.items()}
        named = _asked(table for number, table in requests.items() if is_named[number])
        names = [rows_name(number) for number in files["rows"]]
        names += _part_names(store)
        rows = [read_table(store, name, ["row_id", "uid"]) for name in names]
        uids = [digest for table in rows for digest in table["uid"].to_pylist()]
        row_ids = frozenset(row_id for table in rows for row_id in table["row_id"].to_pylist())
        return cls(asked, DigestSet.of([*uids, *_padded(asked["uid"])]), row_ids, named)


def _asked(requests: Iterable[pa.Table]) -> dict[ListKind, DigestSet]:
    tables = list(requests)
    return {kind: DigestSet.of(_digests_of(tables, kind)) for kind in LIST_KINDS}


def _digests_of(requests: Iterable[pa.Table], kind: ListKind) -> Iterator[bytes]:
    for table in requests:
        for name, digest in zip(table["kind"].to_pylist(), table["digest"].to_pylist(), strict=True):
            if name == kind:
                yield digest


def write_request(store: Store, values: Values, reason: str, exports: Sequence[str] = ()) -> int:
    """Record a request durably. Writes only hashes. Returns the request's number."""
    rows = [(kind, key(kind, value)) for kind, listed in values.items() for value in sorted(listed)]
    columns = [[kind for kind, _ in rows], [digest for _, digest in rows]]
    for _ in range(_TRIES):
        number = max(ledger_files(store)["request"], default=0) + 1
        counts: dict[str, int] = {kind: len(listed) for kind, listed in values.items() if listed}
        request = PurgeRequest(
            number=number,
            requested_at=now(),
            reason=reason,
            values=counts,
            matching="named",
            exports=list(exports),
        )
        table = pa.table(columns, schema=REQUEST_SCHEMA.with_metadata({_METADATA_KEY: request.model_dump_json()}))
        if store.create(request_name(number), to_parquet(table)):
            return number
    raise AssertionError("other purges keep taking the next number")


def read_request(store: Store, number: int) -> PurgeRequest:
    """A request of the ledger. Raises DamagedManifestError."""
    return _described(store, number, read_table(store, request_name(number)))


def _described(store: Store, number: int, table: pa.Table) -> PurgeRequest:
    try:
        return PurgeRequest.model_validate_json(table.schema.metadata[_METADATA_KEY])
    except (KeyError, TypeError, ValidationError):
        raise DamagedManifestError(
            f"{store.path(request_name(number))} is damaged or not pairmill's; restore it"
        ) from None


def write_part(store: Store, shard: int, generation: int, rows: pa.Table) -> None:
    """Record the withdrawn rows of a shard (WITHDRAWN_SCHEMA) before they are removed. Another call replaces the file,
    which loses no rows because the ledger only grows."""
    stem = manifest_name(shard, generation).removesuffix(".json")
    store.replace(f"{PARTS}/{stem}.parquet", to_parquet(rows))


def merge_parts(store: Store, number: int) -> int:
    """Merge the parts of a request into one file. Returns the number of rows that the request withdrew."""
    parts, name = _part_names(store), rows_name(number)
    before = [read_table(store, name)] if store.exists(name) else []  # from a purge that was killed here
    merged = _distinct(pa.concat_tables([WITHDRAWN_SCHEMA.empty_table(), *before, *_tables(store, parts)]))
    store.replace(name, to_parquet(merged))
    for part in parts:
        store.delete(part)
    return int(merged.num_rows)


def finish(store: Store, number: int, rows: int) -> None:
    """Mark a request with merged parts as done. `rows`: the number of rows that it withdrew."""
    done = PurgeDone(number=number, finished_at=now(), rows=rows)
    store.create(done_name(number), record_bytes(done))


def with_values(ledger: Ledger, keys: Mapping[ListKind, Iterable[bytes]]) -> Ledger:
    """The ledger as it would be after a request."""
    asked, named = (
        {kind: DigestSet.of([*_padded(listed), *keys.get(kind, ())]) for kind, listed in earlier.items()}
        for earlier in (ledger.asked, ledger.named)
    )
    return Ledger(asked, DigestSet.of([*_padded(ledger.uids), *keys.get("uid", ())]), ledger.row_ids, named)


def _padded(digests: DigestSet) -> list[bytes]:
    """The digests as bytes; numpy strips trailing zeros."""
    return [digest.ljust(32, b"\0") for digest in digests.entries.tolist()]


def withdrawn_rows(store: Store) -> pa.Table:
    """All rows that were ever withdrawn (WITHDRAWN_SCHEMA)."""
    names = [rows_name(number) for number in ledger_files(store)["rows"]]
    names += _part_names(store)
    return pa.concat_tables([WITHDRAWN_SCHEMA.empty_table(), *_tables(store, names)])


def withdrawn_vectors(store: Store) -> DigestSet:
    """The digests of the embeddings of all rows that were ever withdrawn."""
    return DigestSet.of(withdrawn_rows(store)["vectors"].combine_chunks().flatten().to_pylist())


def to_parquet(table: pa.Table) -> bytes:
    """The content of a Parquet file with a small table."""
    data = BytesIO()
    pq.write_table(table, data, compression="zstd", write_page_checksum=True)
    return data.getvalue()


def now() -> str:
    """The current time, as records store it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _part_names(store: Store) -> list[str]:
    return [f"{PARTS}/{name}" for name in store.list(PARTS) if name.endswith(".parquet")]


def _tables(store: Store, names: Iterable[str]) -> Iterator[pa.Table]:
    return (read_table(store, name).cast(WITHDRAWN_SCHEMA) for name in names)


def _distinct(rows: pa.Table) -> pa.Table:
    """One row for each (row_id, uid): the rows of a shard that was rewritten twice are in two parts."""
    keys = list(zip(rows["row_id"].to_pylist(), rows["uid"].to_pylist(), strict=True))
    last = {key: index for index, key in enumerate(keys)}
    return rows.take(pa.array(sorted(last.values()), pa.int64()))
