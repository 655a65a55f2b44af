"""Takes withdrawn rows out of subsets. The others stay selected, wherever they are in the new generations."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

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
    subset_names,
    write_overlap,
    write_tables,
)
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.keys import digest
from pairmill.pipeline.purge.ledger import Ledger
from pairmill.pipeline.purge.matching import Matcher
from pairmill.schemas.leak import LeakPair
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.subset import StepReport, Subset, SubsetFiles


@dataclass(frozen=True)
class _Change:
    """The newest generation of a shard, and which rows of an older pairs file it still has."""

    generation: int
    pairs_blake2b: str
    is_kept: pa.Array
    """For each row of the older file."""


def purge_subsets(store: Store, ledger: Ledger, generations: Mapping[int, int]) -> list[str]:
    """Rewrite the subsets that hold withdrawn rows, or were selected from shards that a purge has rewritten. Returns
    their names.

    Old generations of these shards must still be there: they say where each row was. `generations`: shard -> newest.
    """
    changes = _Changes(store, generations)
    return [name for name in subset_names(store) if _purge_subset(store, read_subset(store, name), ledger, changes)]


class _Changes:
    """Finds what became of the pairs file that a subset was selected from."""

    def __init__(self, store: Store, generations: Mapping[int, int]) -> None:
        self._store = store
        self._newest = generations
        self._all = manifests_of(store)
        self.of = lru_cache(maxsize=64)(self._of)

    def _of(self, shard: int, generation: int, pairs_blake2b: str) -> _Change | None:
        """None if the shard still has this pairs file, or if it was rebuilt by anything but a purge, whose old
        generation is gone: the subset is outdated then, and is selected again anyway."""
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
                is_same = is_kept.true_count == len(now)  # otherwise a retry came between, and rows were added
                return _Change(newest, new.blake2b, is_kept) if is_same else None
        return None


@dataclass
class _Rewritten:
    """The files of a subset as they are read, and what they add up to."""

    files: list[tuple[pa.Table, pa.Table]] = field(default_factory=list)
    """The rows and the shards of each chunk."""
    is_changed: bool = False
    counts: Counter[int] = field(default_factory=Counter)
    """Number of a step, or NOT_DROPPED -> rows."""
    weight_sum: float = 0.0
    state: str = ""


def _purge_subset(store: Store, subset: Subset, ledger: Ledger, changes: _Changes) -> bool:
    found = _Rewritten()
    for files in subset.files:
        rows, shards = _purge_files(store, files, ledger.uids, changes, found)
        found.files.append((rows, shards))
    reports = list(_reports(subset.reports, found.counts, Matcher(ledger)))
    overlaps = [read_table(store, file.path) for file in subset.overlaps]
    left = [_without_withdrawn(table, ledger.uids) for table in overlaps]
    if not found.is_changed and reports == subset.reports and left == overlaps:
        return False
    attempt = hashlib.blake2b(f"{subset.attempt} purged {found.state}".encode(), digest_size=16).hexdigest()
    folder = f"subsets/{subset.name}"
    written = [
        write_tables(store, rows, shards, folder, f"{number:05d}.{attempt}")
        for number, (rows, shards) in enumerate(found.files)
    ]
    changed = {
        "attempt": attempt,
        "rows_in": found.counts.total(),
        "rows_out": found.counts[NOT_DROPPED],
        "reports": reports,
        "generations_blake2b": hashlib.blake2b(found.state.encode(), digest_size=16).hexdigest(),
        "files": written,
        "overlaps": [
            write_overlap(store, table, subset.name, f"{number:05d}.{attempt}") for number, table in enumerate(left)
        ],
        "weight_sum": None if subset.weight_sum is None else found.weight_sum,
    }
    publish(store, subset.model_copy(update=changed), subset)
    return True


def _purge_files(
    store: Store, files: SubsetFiles, uids: DigestSet, changes: _Changes, found: _Rewritten
) -> tuple[pa.Table, pa.Table]:
    """The two tables of a chunk without the withdrawn rows."""
    rows, shards = read_table(store, files.rows.path), read_table(store, files.shards.path)
    tables, records = [], []
    for record in shards.to_pylist():
        of_shard = rows.filter(pc.equal(rows["shard"], record["shard"]))
        change = changes.of(record["shard"], record["generation"], record["pairs_blake2b"])
        if change is not None:
            found.is_changed = True
            record, of_shard = _moved(record, of_shard, change)
        elif (listed := _listed(of_shard, uids)).any():  # an outdated subset: only its uids can be dropped
            found.is_changed = True
            of_shard = of_shard.filter(pa.array(~listed))
        drop_step = np.frombuffer(record["fates"], np.int8)
        found.counts.update(Counter(drop_step.tolist()))
        found.state += f"{record['shard']} {record['generation']} {record['pairs_blake2b']}\n"
        if WEIGHT in of_shard.schema.names:
            found.weight_sum += float(of_shard[WEIGHT].to_numpy().sum(dtype=np.float64))
        tables.append(of_shard)
        records.append(record)
    return pa.concat_tables([rows.schema.empty_table(), *tables]), pa.Table.from_pylist(records, shards.schema)


def _moved(record: Mapping[str, object], rows: pa.Table, change: _Change) -> tuple[dict[str, object], pa.Table]:
    """The record of a shard, and its selected rows, for its new generation."""
    raw = record["fates"]
    assert isinstance(raw, bytes)
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
    """An overlap with an evaluation set without the pictures that name a withdrawn row, or are withdrawn themselves."""
    named = np.zeros(overlap.num_rows, np.bool_)
    for name in ("uid", "item_uid"):
        named |= uids.contains([digest("uid", uid.encode()) for uid in overlap[name].to_pylist()])
    return overlap.filter(pa.array(~named))


def _reports(reports: Sequence[StepReport], counts: Counter[int], matcher: Matcher) -> Iterator[StepReport]:
    """What each step did with the rows that are left. Groups and entries that are withdrawn are not named any more."""
    remaining = counts.total()
    for number, report in enumerate(reports):
        rows_in, remaining = remaining, remaining - counts[number]
        named = [each for each in report.largest_clusters if not _is_withdrawn(each.row_id, [each.url], matcher)]
        changed = {"rows_in": rows_in, "rows_out": remaining, "largest_clusters": named}
        if report.balance is not None:
            head = [each for each in report.balance.head if not _names_withdrawn(each.entry, matcher)]
            changed["balance"] = report.balance.model_copy(update={"head": head})
        if report.leak is not None:
            pairs = [each for each in report.leak.nearest if not _pair_is_withdrawn(each, matcher)]
            changed["leak"] = report.leak.model_copy(update={"nearest": pairs})
        yield report.model_copy(update=changed)


def _names_withdrawn(entry: str, matcher: Matcher) -> bool:
    """Whether an entry of a step `balance` is a host or URL that is withdrawn."""
    return bool(matcher.withdrawn_urls([entry, f"https://{entry}/"]).any())


def _pair_is_withdrawn(pair: LeakPair, matcher: Matcher) -> bool:
    """Whether a pair names a withdrawn row, or an evaluation picture with a withdrawn uid or URL."""
    item = bool(matcher.ledger.uids.contains([digest("uid", pair.item_uid.encode())])[0])
    return item or _is_withdrawn(pair.row_id, [pair.url, pair.item_url], matcher)


def _is_withdrawn(row_id: str, urls: Sequence[str | None], matcher: Matcher) -> bool:
    if row_id in matcher.ledger.row_ids:
        return True
    return bool(matcher.withdrawn_urls([url for url in urls if url is not None]).any())
