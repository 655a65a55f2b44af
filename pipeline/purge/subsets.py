"""Removes withdrawn rows from subsets. The other rows stay selected, at their positions in the new generations."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import manifests_of, read_manifest
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.dataset.subset import (
    NOT_DROPPED,
    WEIGHT,
    WEIGHTS_FIELD,
    publish,
    read_subset,
    shard_numbers,
    subset_names,
    write_overlap,
    write_tables,
)
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.keys import canonical, digest, key, urls_in
from pairmill.pipeline.purge.ledger import Ledger
from pairmill.pipeline.purge.matching import Matcher
from pairmill.schemas.balance import EntryRows
from pairmill.schemas.leak import LeakPair
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.subset import StepReport, Subset, SubsetFiles

_WORD = re.compile(r"[^\s\"'`()\[\]{}<>,;:/|=%*@]+")


@dataclass(frozen=True)
class _Change:
    """The newest generation of a shard, and the rows of an older pairs file that it still has."""

    generation: int
    pairs_blake2b: str
    is_kept: pa.Array | None
    """Whether each row of the older file is kept; None if something other than a purge rewrote the shard, or the older
    file is gone: then the subset is outdated and has to be selected again anyway."""


def purge_subsets(store: Store, ledger: Ledger, generations: Mapping[int, int]) -> Iterator[str]:
    """Rewrite the subsets that contain withdrawn rows or were selected from shards that a purge has rewritten. Yields
    the name of each before it changes.

    The old generations of these shards must still exist: they show where each row was. `generations`: shard -> newest.
    """
    changes = _Changes(store, generations)
    for name in subset_names(store):
        subset = read_subset(store, name)
        if (found := _Rewritten.of(store, subset, ledger, changes)).differs_from(subset):
            yield name
            _write(store, subset, found)


def affected_subsets(store: Store, ledger: Ledger, generations: Mapping[int, int], changed: Set[int]) -> dict[str, int]:
    """Name of each subset that a purge would rewrite -> the number of its rows that would be withdrawn.

    `ledger`: as it would be after the purge; `generations`: the current ones; `changed`: the shards with pairs that
    would be withdrawn.
    """
    changes, withdrawn = _Changes(store, generations), {}
    for name in subset_names(store):
        subset, found, left = read_subset(store, name), _Rewritten(), 0
        for files in subset.files:
            rows, _ = found.chunk(store, files, ledger.uids, changes)
            left += int(np.count_nonzero(~_listed(rows, ledger.uids)))  # an interrupted purge may have moved some
        found.is_changed |= bool(changed & shard_numbers(store, subset))
        found.add_reports(store, subset, ledger)
        if found.differs_from(subset):
            withdrawn[name] = subset.rows_out - left
    return withdrawn


def naming_withdrawn(store: Store, matcher: Matcher) -> list[str]:
    """The subsets whose configured steps name a URL, host, uid or SHA-256 that is withdrawn."""
    texts = {name: "\n".join(_texts(read_subset(store, name))) for name in subset_names(store)}
    return [name for name, text in texts.items() if _mentions_withdrawn(text, matcher)]


class _Changes:
    """Compares the pairs files that subsets were selected from with the newest ones."""

    def __init__(self, store: Store, generations: Mapping[int, int]) -> None:
        self._store = store
        self._newest = generations
        self._all = manifests_of(store)
        self.of = lru_cache(maxsize=64)(self._of)

    def _of(self, shard: int, generation: int, pairs_blake2b: str) -> _Change | None:
        """The change since this pairs file; None if the shard still has it."""
        newest = self._newest.get(shard)
        if newest is None or newest == generation:
            return None
        new = read_manifest(self._store, manifest_name(shard, newest)).files["pairs"]
        if new.blake2b == pairs_blake2b:
            return None
        for older in sorted(self._all.get(shard, ()), reverse=True):
            old = read_manifest(self._store, manifest_name(shard, older)).files["pairs"]
            if old.blake2b == pairs_blake2b:
                before = read_table(self._store, old.path, ["row_id"])["row_id"].combine_chunks()
                now = read_table(self._store, new.path, ["row_id"])["row_id"].combine_chunks()
                is_kept = pc.is_in(before, value_set=now)
                is_same = is_kept.true_count == len(now)  # if not, a retry in between added rows
                return _Change(newest, new.blake2b, is_kept if is_same else None)
        return _Change(newest, new.blake2b, None)


@dataclass
class _Rewritten:
    """The files of a subset without withdrawn rows, and their totals."""

    files: list[tuple[pa.Table, pa.Table]] = field(default_factory=list)
    """(rows, shards) of each chunk."""
    is_changed: bool = False
    """Whether the rows or shards differ from before."""
    is_affected: bool = False
    """Whether some of the rows that the subset was selected from may have been withdrawn since."""
    counts: Counter[int] = field(default_factory=Counter)
    """Number of a step, or NOT_DROPPED -> number of rows."""
    weight_sum: float = 0.0
    state: str = ""
    reports: list[StepReport] = field(default_factory=list)
    overlaps: list[pa.Table] = field(default_factory=list)

    @classmethod
    def of(cls, store: Store, subset: Subset, ledger: Ledger, changes: _Changes) -> "_Rewritten":
        """Read the files of a subset without the withdrawn rows."""
        found = cls()
        found.files = [found.chunk(store, files, ledger.uids, changes) for files in subset.files]
        found.add_reports(store, subset, ledger)
        return found

    def add_reports(self, store: Store, subset: Subset, ledger: Ledger) -> None:
        """Read the reports and overlaps without the withdrawn rows, once all chunks have been read."""
        self.reports = list(_reports(subset.reports, self, Matcher(ledger)))
        for file in subset.overlaps:
            overlap = read_table(store, file.path)
            self.overlaps.append(left := _without_withdrawn(overlap, ledger.uids))
            self.is_changed |= left.num_rows < overlap.num_rows

    def differs_from(self, subset: Subset) -> bool:
        """Whether the subset has to be written again."""
        return self.is_changed or self.reports != subset.reports

    def attempt(self, before: str) -> str:
        """A name for these files, derived from their content and their previous name. A repeated purge gives the same
        name only to the same content."""
        digest_ = hashlib.blake2b(f"{before} purged {self.state}".encode(), digest_size=16)
        for table in (*(each for pair in self.files for each in pair), *self.overlaps):
            with pa.BufferOutputStream() as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks())
            digest_.update(sink.getvalue())
        return digest_.hexdigest()

    def chunk(self, store: Store, files: SubsetFiles, uids: DigestSet, changes: _Changes) -> tuple[pa.Table, pa.Table]:
        """The two tables of a chunk without the withdrawn rows. Counts the others."""
        rows, shards = read_table(store, files.rows.path), read_table(store, files.shards.path)
        tables, records = [], []
        for record in shards.to_pylist():
            of_shard = rows.filter(pc.equal(rows["shard"], record["shard"]))
            change = changes.of(record["shard"], record["generation"], record["pairs_blake2b"])
            self.is_affected |= change is not None
            if change is not None and change.is_kept is not None:
                self.is_changed = True
                record, of_shard = _moved(record, of_shard, change)
            elif (listed := _listed(of_shard, uids)).any():  # an outdated subset: only its uids can be dropped
                self.is_changed = self.is_affected = True
                of_shard = of_shard.filter(pa.array(~listed))
            self._count(record, of_shard)
            tables.append(of_shard)
            records.append(record)
        return pa.concat_tables([rows.schema.empty_table(), *tables]), pa.Table.from_pylist(records, shards.schema)

    def _count(self, record: Mapping[str, Any], rows: pa.Table) -> None:
        counts = Counter(np.frombuffer(record["fates"], np.int8).tolist())
        self.counts.update({**counts, NOT_DROPPED: rows.num_rows})  # of an outdated subset, only the rows are removed
        self.state += f"{record['shard']} {record['generation']} {record['pairs_blake2b']}\n"
        if WEIGHT in rows.schema.names:
            self.weight_sum += float(rows[WEIGHT].to_numpy().sum(dtype=np.float64))


def _write(store: Store, subset: Subset, found: _Rewritten) -> None:
    folder, attempt = f"subsets/{subset.name}", found.attempt(subset.attempt)
    written = [
        write_tables(store, rows, shards, folder, f"{number:05d}.{attempt}")
        for number, (rows, shards) in enumerate(found.files)
    ]
    changed = {
        "attempt": attempt,
        "rows_in": found.counts.total(),
        "rows_out": found.counts[NOT_DROPPED],
        "reports": found.reports,
        "generations_blake2b": hashlib.blake2b(found.state.encode(), digest_size=16).hexdigest(),
        "files": written,
        "overlaps": [
            write_overlap(store, table, subset.name, f"{number:05d}.{attempt}")
            for number, table in enumerate(found.overlaps)
        ],
        "weight_sum": None if subset.weight_sum is None else found.weight_sum,
    }
    publish(store, subset.model_copy(update=changed), subset)


def _moved(record: Mapping[str, object], rows: pa.Table, change: _Change) -> tuple[dict[str, object], pa.Table]:
    """(the record of a shard, its selected rows), for its new generation."""
    raw = record["fates"]
    assert isinstance(raw, bytes)
    assert change.is_kept is not None
    is_kept = change.is_kept.to_numpy(zero_copy_only=False)
    drop_step = np.frombuffer(raw, np.int8)[is_kept]
    new = {
        **record,
        "generation": change.generation,
        "pairs_blake2b": change.pairs_blake2b,
        "rows": len(drop_step),
        "chosen": int(np.count_nonzero(drop_step == NOT_DROPPED)),
        "fates": drop_step.tobytes(),
    }
    rows = rows.filter(pa.array(is_kept[rows["row"].to_numpy()]))
    if WEIGHTS_FIELD.name in record:
        new[WEIGHTS_FIELD.name] = rows[WEIGHT].to_numpy().astype("<f4").tobytes()
    index = rows.schema.get_field_index("row")
    places = (np.cumsum(is_kept) - 1)[rows["row"].to_numpy()]  # in the new file
    return new, rows.set_column(index, rows.schema.field(index), pa.array(places, pa.int32()))


def _listed(rows: pa.Table, uids: DigestSet) -> np.ndarray:
    return uids.contains([digest("uid", uid.encode()) for uid in rows["uid"].to_pylist()])


def _without_withdrawn(overlap: pa.Table, uids: DigestSet) -> pa.Table:
    """An overlap with an evaluation set, without entries whose row or evaluation picture is withdrawn."""
    named = np.zeros(overlap.num_rows, np.bool_)
    for name in ("uid", "item_uid"):
        named |= uids.contains([digest("uid", uid.encode()) for uid in overlap[name].to_pylist()])
    return overlap.filter(pa.array(~named))


def _reports(reports: Sequence[StepReport], found: _Rewritten, matcher: Matcher) -> Iterator[StepReport]:
    """The report of each step for the remaining rows. Withdrawn groups and entries are no longer named."""
    remaining = found.counts.total()
    for number, report in enumerate(reports):
        rows_in, remaining = remaining, remaining - found.counts[number]
        named = [each for each in report.largest_clusters if not _is_withdrawn(each.row_id, [each.url], matcher)]
        changed = {"rows_in": rows_in, "rows_out": remaining, "largest_clusters": named}
        if report.balance is not None:
            head = [each for each in report.balance.head if not _may_be_withdrawn(each, found.is_affected, matcher)]
            changed["balance"] = report.balance.model_copy(update={"head": head})
        if report.leak is not None:
            pairs = [each for each in report.leak.nearest if not _pair_is_withdrawn(each, matcher)]
            changed["leak"] = report.leak.model_copy(update={"nearest": pairs})
        yield report.model_copy(update=changed)


def _may_be_withdrawn(entry: EntryRows, is_affected: bool, matcher: Matcher) -> bool:
    """Whether an entry of a step `balance` is a withdrawn host or URL, or could be another value, such as a caption,
    that only withdrawn rows had. A remaining row certainly has the value only if the entry had more rows than were
    ever withdrawn."""
    is_listed = matcher.withdrawn_urls([entry.entry, f"https://{entry.entry}/"]).any()
    return bool(is_listed) or (is_affected and entry.rows <= len(matcher.ledger.row_ids))


def _pair_is_withdrawn(pair: LeakPair, matcher: Matcher) -> bool:
    """Whether a pair names a withdrawn row, or an evaluation picture with a withdrawn uid or URL."""
    item = bool(matcher.ledger.uids.contains([digest("uid", pair.item_uid.encode())])[0])
    return item or _is_withdrawn(pair.row_id, [pair.url, pair.item_url], matcher)


def _is_withdrawn(row_id: str, urls: Sequence[str | None], matcher: Matcher) -> bool:
    if row_id in matcher.ledger.row_ids:
        return True
    return bool(matcher.withdrawn_urls([url for url in urls if url is not None]).any())


def _texts(subset: Subset) -> Iterator[str]:
    """All strings in the steps."""
    waiting: list[object] = [step.model_dump(mode="json") for step in subset.steps]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _mentions_withdrawn(text: str, matcher: Matcher) -> bool:
    asked, words = matcher.ledger.asked, [word.strip(".") for word in _WORD.findall(text)]
    urls = [*urls_in(text), *(f"https://{word}/" for word in words if "." in word)]  # the second kind for hosts
    uids, sha256 = ([each for word in words if (each := canonical(kind, word))] for kind in ("uid", "sha256"))
    return bool(
        matcher.withdrawn_urls(urls).any()
        or matcher.ledger.uids.contains([key("uid", uid) for uid in uids]).any()
        or asked["sha256"].contains([key("sha256", each) for each in sha256]).any()
    )
