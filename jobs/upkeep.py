"""`pairmill gc`, and what `status` says about generations, added columns and withdrawn rows."""

from collections import Counter
from dataclasses import asdict, dataclass

from pairmill.pipeline.columns.added_columns import column_sets, columns_done
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import manifests_of
from pairmill.pipeline.dataset.withdrawn import ledger_files, refuse_unfinished_purge, unfinished_purges
from pairmill.pipeline.purge.superseded import Unneeded, delete_all, unneeded_files
from pairmill.pipeline.source.plan import load_plan


@dataclass(frozen=True)
class Upkeep:
    """The state of an output folder, except for its rows."""

    generations: dict[int, int]
    """Generation -> number of shards for which it is the newest."""
    superseded: int
    """Older generations, which `gc` deletes."""
    columns: dict[str, int]
    """Folder in `columns/` -> number of shards that have these columns in their newest generation."""
    requests: int
    """Number of purge requests."""
    unfinished_purges: int

    @classmethod
    def of(cls, store: Store) -> "Upkeep":
        """Read the state from folder listings. Raises ManifestError if the card of a score is damaged."""
        manifests = manifests_of(store)
        newest = {shard: generations[-1] for shard, generations in manifests.items()}
        columns = {
            each.name: len(newest.items() & columns_done(store, each.name).items()) for each in column_sets(store)
        }
        return cls(
            generations=dict(sorted(Counter(newest.values()).items())),
            superseded=sum(len(generations) - 1 for generations in manifests.values()),
            columns=columns,
            requests=len(ledger_files(store)["request"]),
            unfinished_purges=len(unfinished_purges(store)),
        )

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class GcResult:
    """What `gc` deleted or, with `dry_run`, would delete."""

    output: str
    dry_run: bool
    files: list[Unneeded]
    num_bytes: int

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        files = [{"name": file.name, "why": file.why} for file in self.files]
        return {"output": self.output, "dry_run": self.dry_run, "files": files, "num_bytes": self.num_bytes}


def gc(store: Store, dry_run: bool = False) -> GcResult:
    """Delete superseded generations, and files that interrupted commands left behind. Files of uncommitted shards stay
    for an hour, because a worker may be about to commit them. Raises JobError and ManifestError."""
    store.check_access()
    load_plan(store)
    refuse_unfinished_purge(store)  # its subsets still need the old generations
    files = list(unneeded_files(store))
    num_bytes = 0
    for file in files:
        try:
            num_bytes += store.num_bytes(file.name)
        except FileNotFoundError:
            continue
    if not dry_run:
        delete_all(store, iter(files))
        store.remove_temporary()
    return GcResult(store.root, dry_run, files, num_bytes)
