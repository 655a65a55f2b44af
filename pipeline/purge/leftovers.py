"""Removes withdrawn rows from what was made from the dataset: labels, search indexes, reports, scores, failures."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from pairmill.pipeline.columns.commands import STATE_NAME
from pairmill.pipeline.columns.score_card import SCORE_CARD
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_columns_manifest, read_manifest
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.keys import digest
from pairmill.pipeline.purge.ledger import to_parquet
from pairmill.pipeline.search.local_copy import forget_copy
from pairmill.pipeline.search.part_files import read_parts
from pairmill.schemas.manifest import manifest_name


def purge_labels(store: Store, uids: DigestSet) -> Iterator[str]:
    """Drop the labels of withdrawn rows. Yields each file before it changes."""
    for name in store.list("labels"):
        path = f"labels/{name}"
        if not name.endswith(".parquet"):
            continue
        table = read_table(store, path)
        if "uid" not in table.column_names:
            continue
        gone = uids.contains([None if uid is None else digest("uid", uid.encode()) for uid in table["uid"].to_pylist()])
        if gone.any():
            yield path
            store.replace(path, to_parquet(table.filter(pa.array(~gone))))


def purge_indexes(store: Store, generations: Mapping[int, int]) -> Iterator[str]:
    """Delete the parts of search indexes that cover an older version of a shard. Yields each folder before deleting
    parts of it."""
    for folder in store.folders("index"):
        current = _Digests(store, folder.rpartition("-")[0], generations)
        parts = read_parts(store, f"index/{folder}")
        outdated = [
            stem
            for stem, part in parts.items()
            if not all(current.holds(each.shard, each.blake2b) for each in part.shards)
        ]
        if outdated:
            yield folder
        for stem in outdated:
            store.delete(parts[stem].file.path)
            forget_copy(parts[stem].file)
            store.delete(f"index/{folder}/manifests/{stem}.json")


@dataclass(frozen=True)
class _Digests:
    """The checksums of the files that now contain a model's embeddings."""

    store: Store
    alias: str
    generations: Mapping[int, int]

    def holds(self, shard: int, blake2b: str) -> bool:
        """Whether the shard still has this file."""
        if shard not in self.generations:
            return False
        name = manifest_name(shard, self.generations[shard])
        if read_manifest(self.store, name).files["pairs"].blake2b == blake2b:
            return True
        try:
            return read_columns_manifest(self.store, self.alias, name).file.blake2b == blake2b
        except FileNotFoundError:
            return False


def reports_of(store: Store) -> list[str]:
    """The names of the reports in the output folder."""
    names = store.list("")
    return [name for name in names if name == "report.html" or (name.startswith("report-") and name.endswith(".html"))]


def delete_reports(store: Store) -> Iterator[str]:
    """Delete the reports, which show pictures and captions. Yields each name before deleting the file."""
    for name in reports_of(store):
        yield name
        store.delete(name)


def delete_failures(store: Store) -> None:
    """Delete the tracebacks of failed shards, which can quote rows."""
    for name in store.list("failures"):
        store.delete(f"failures/{name}")


def delete_scores(store: Store, names: Collection[str]) -> None:
    """Delete scores. Their manifests go first, so that no manifest is left without its columns. The card follows the
    columns and the state follows the card: a purge needs the state of each card, and deletes a state without a card.
    """
    for name in names:
        for folder in (f"columns/{name}/manifests", f"columns/{name}"):
            for file in sorted(store.list(folder), key=_place):
                store.delete(f"{folder}/{file}")


def _place(file: str) -> int:
    """The place of a score's file in the order in which its files are deleted."""
    return 2 if STATE_NAME.fullmatch(file) else int(file == SCORE_CARD)
