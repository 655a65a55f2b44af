"""Searches the whole output folder for rows that were withdrawn, for `verify --purged`."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.manifests import committed, manifests_of, read_columns_manifest, read_manifest
from pairmill.pipeline.purge.ledger import Ledger, withdrawn_rows
from pairmill.pipeline.purge.lists import NOUNS, Values
from pairmill.pipeline.purge.needles import Needles
from pairmill.pipeline.purge.scan import shared
from pairmill.pipeline.purge.search_file import FileReport, search_file
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.purge import ListKind

MAX_FOUND = 1_000


@dataclass
class PurgedReport:
    """What was searched, and what was found of the purged rows."""

    files: int = 0
    num_bytes: int = 0
    """Bytes of text and raw data that were searched."""
    values: int = 0
    """Values of Parquet columns."""
    members: int = 0
    """Members of tars."""
    captions: int = 0
    vectors: int = 0
    pictures: int = 0
    listed: dict[ListKind, int] = field(default_factory=dict)
    """Kind -> number of listed values."""
    withdrawn: int = 0
    """Rows in the ledger whose uids, captions, pictures and vectors were looked for."""
    shared: int = 0
    """Captions, pictures and vectors of these rows that also belong to rows that were not withdrawn."""
    found: list[str] = field(default_factory=list)
    """`FILE: what`, at most MAX_FOUND entries."""
    unsearched: list[str] = field(default_factory=list)
    """`FILE: why` for each file or part of a file that could not be searched."""

    @property
    def holds(self) -> bool:
        """Whether everything was searched and nothing was found."""
        return not self.found and not self.unsearched

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """What was searched, as lines to print."""
        listed = ", ".join(counted(number, NOUNS[kind]) for kind, number in self.listed.items())
        yield (
            f"looked for {listed}, and for the uids, captions, pictures and embeddings of "
            f"{counted(self.withdrawn, 'withdrawn row')}"
        )
        yield (
            f"in {counted(self.files, 'file')}: {counted(self.num_bytes, 'byte')}, "
            f"{counted(self.values, 'Parquet value')}, {counted(self.members, 'tar member')}, "
            f"{counted(self.captions, 'possible caption')}, {counted(self.vectors, 'vector')} and "
            f"{counted(self.pictures, 'picture')}"
        )
        if self.shared:
            yield f"{self.shared:,} of these captions, pictures and embeddings belong to other rows too, which stay"


def search_folder(store: Store, values: Values, tasks: Tasks) -> PurgedReport:
    """Search every file of the output folder, no matter what wrote it.

    Captions, pictures and vectors of withdrawn rows are recognized by their hashes in the ledger. They can belong to
    other rows too: captions, pictures and vectors of rows that are still in the dataset are never reported.
    """
    needles = _needles(store, values)
    report = PurgedReport(listed={kind: len(listed) for kind, listed in values.items()}, withdrawn=len(needles.row_ids))
    own = _files_of_rows(store)
    kept, rest = set[bytes](), list[FileReport]()
    counts = Counter[str]()
    names, handle = list(_all_files(store)), shared(tasks, needles.prepared())
    for each in tasks.get(tasks.map(search_file, [(store, handle, name) for name in names])):
        counts += each.counts
        report.found += [f"{each.name}: {what}" for what in sorted(each.found)]
        report.unsearched += [f"{each.name}: {why}" for why in sorted(each.unsearched)]
        if each.name in own:
            kept |= each.digests
        elif each.digests or each.parts:
            rest.append(each)
    kinds = {"caption": needles.captions, "picture": needles.pictures, "embedding": needles.vectors}
    for each in rest:
        for kind, digests in kinds.items():
            if left := (each.digests | each.parts) & digests - kept:
                report.found.append(f"{each.name}: {counted(len(left), kind)} of withdrawn rows")
    report.files, report.shared = len(names), len(kept)
    report.num_bytes = counts["bytes"]
    for name in ("values", "members", "captions", "vectors", "pictures"):
        setattr(report, name, counts[name])
    report.found = sorted(report.found)[:MAX_FOUND]
    return report


def _needles(store: Store, values: Values) -> Needles:
    rows, ledger = withdrawn_rows(store), Ledger.load(store)
    digests = {
        name: frozenset(rows[name].combine_chunks().flatten().to_pylist())
        for name in ("captions", "pictures", "vectors")
    }
    uids = frozenset(each.ljust(32, b"\0") for each in ledger.uids.entries.tolist())
    return Needles(values, ledger.row_ids, uids, **digests)


def _files_of_rows(store: Store) -> set[str]:
    """The files that the newest manifests name: their captions, pictures and vectors belong to rows of the dataset.

    After a retry, the newest columns of a shard can be older than its pairs. They too contain only rows that are in the
    dataset: withdrawn rows would be found by their `row_id`.
    """
    newest = committed(store)
    found = set[str]()
    for shard, generation in newest.items():
        files = read_manifest(store, manifest_name(shard, generation)).files.values()
        found |= {file.path for file in files}
    for name in store.folders("columns"):
        for shard, generations in manifests_of(store, f"columns/{name}/manifests").items():
            record = read_columns_manifest(store, name, manifest_name(shard, generations[-1]))
            found.add(record.file.path)
    return found


def _all_files(store: Store) -> Iterator[str]:
    """The names of all files in the folder, including hidden ones."""
    root = store.fs._strip_protocol(store.root).rstrip("/")
    for path in sorted(store.fs.find(root)):
        yield path.removeprefix(f"{root}/")
