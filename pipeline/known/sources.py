"""Opens a source of known rows: a dataset, or one or more lists."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pairmill.pipeline.common.delta_log import TableError, check_tables
from pairmill.pipeline.common.files import S3_SCHEMES, Files, is_inside, is_remote
from pairmill.pipeline.common.listing import list_path
from pairmill.pipeline.common.snapshot_tables import refuse_snapshot_tables
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.known.datasets import KnownDataset
from pairmill.pipeline.known.keys import Keys
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.read_values import Tally
from pairmill.pipeline.known.table_list import read_table_list
from pairmill.pipeline.known.text_list import read_text_list
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.known import KnownRows, ValueKind

_TABLES = (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz")
_TEXTS = (".txt", ".txt.gz")
_OTHER_FORMATS = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz", ".zip", ".zst", ".bz2", ".npy")


class Source(Protocol):
    """An opened source of values."""

    @property
    def fingerprint(self) -> str:
        """A string that changes with the content of the source."""

    def keys(self, tally: Tally) -> Iterator[tuple[ValueKind, Keys]]:
        """(kind, keys) of its values, in batches, including duplicates. Counts them in `tally`. Raises KnownError."""


@dataclass(frozen=True)
class ListFiles:
    """One or more list files."""

    known: KnownRows
    files: Files
    paths: Sequence[str]
    others: int
    """Number of files at the path that are not lists."""

    @property
    def fingerprint(self) -> str:
        """A hash of the fingerprints of all files, regardless of their order."""
        each = sorted(map(self.files.fingerprint, self.paths))
        return hashlib.blake2b("\n".join(each).encode(), digest_size=16).hexdigest()

    def keys(self, tally: Tally) -> Iterator[tuple[ValueKind, Keys]]:
        """(kind, keys) of the values of all files, one file after another. Raises KnownError."""
        if self.others:
            tally.unused["file of another format"] += self.others
        for path in self.paths:
            if path.lower().endswith(_TABLES):
                yield from read_table_list(self.files, path, self.known, tally)
            else:
                kind = self._text_kind(path)
                for keys in read_text_list(self.files, path, kind, tally):
                    yield kind, keys

    def _text_kind(self, path: str) -> ValueKind:
        kinds = self.known.by or ["url"]
        if len(kinds) > 1:
            raise KnownError(f"{path} is a text file, which has one kind of value: set by to only that kind")
        return kinds[0]


def open_source(known: KnownRows, files: Files, output: str | None) -> Source:
    """Open a source. `output`: the dataset that is being built; its own rows must not count as known.

    Raises KnownError if there is no such source or it is the output itself.
    """
    path = known.path
    if output is not None and (path == output or is_inside(path, output)):
        raise KnownError(f"{path} is the output itself; its own rows never count as known")
    if is_remote(path) and not path.startswith(S3_SCHEMES):
        raise KnownError(f"{path} cannot be read: use a local path or s3://")
    try:
        if files.is_folder(path) and committed(store := Store(path, files.s3)):
            return KnownDataset.open(store, known)
        return _lists(known, files, output)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        if isinstance(error, PairmillError):
            raise
        raise KnownError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _lists(known: KnownRows, files: Files, output: str | None) -> ListFiles:
    if known.subset is not None or known.rows != "pairs":
        raise KnownError(
            f"{known.path} is not a dataset with finished shards, so it has no rows or subset to choose from"
        )
    listing = list_path(known.path, files, output)
    named = set(listing.named)
    paths = [path for path in listing.files if path in named or path.lower().endswith((*_TABLES, *_TEXTS))]
    if wrong := [path for path in paths if path.lower().endswith(_OTHER_FORMATS)]:
        raise KnownError(f"{wrong[0]}: a list must be .txt, .csv or .tsv (also .gz), or .parquet")
    if not paths:
        raise KnownError(f"{known.path} is neither a dataset with finished shards nor a folder of lists")
    try:
        others = [*listing.passed_over, *set(listing.files).difference(paths)]
        checked = check_tables(paths, others, files)
        refuse_snapshot_tables(set(paths) - named, others, checked, files)
    except TableError as error:
        raise KnownError(str(error)) from error
    return ListFiles(known, files, paths, len(listing.files) - len(paths) + len(listing.passed_over))
