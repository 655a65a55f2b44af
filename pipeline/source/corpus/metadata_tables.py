"""Knows which metadata tables of a corpus describe which folders of pictures.

A table describes pictures in its own folder and below it. If several tables have a row for a picture, the nearest one
counts. Only if no picture has exactly the name in a row, the row can be about a picture whose name has another Unicode
normal form. At most one parsed table is in memory at a time.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from threading import Lock
from types import MappingProxyType
from typing import NamedTuple

from pairmill.pipeline.common.files import Files, links_outside, trusted_folders
from pairmill.pipeline.source.corpus.metadata_table import (
    MetadataTable,
    common_form,
    names_pictures,
    read_table,
)
from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.names import TABLE_NAMES
from pairmill.schemas.job.source import SourceConfig

Rows = tuple[str, list[bytes]]
"""(name of the table, rows as in MetadataTable)."""


class Described(NamedTuple):
    """What tables say about a folder."""

    pictures: Mapping[str, Rows] = MappingProxyType({})
    """Name of a picture in the folder -> its rows."""
    missing: Mapping[str, Rows] = MappingProxyType({})
    """Path of a picture that does not exist -> its rows in the folder's own table."""
    problems: Sequence[str] = ()
    """Why a row of the folder's own table cannot be read, for each such row."""
    num_tables: int = 0
    """Number of tables that count as entries of this folder: those that describe no folder before it."""


class MetadataTables:
    """The metadata tables of a corpus. Thread-safe, except for `add`."""

    def __init__(self, source: SourceConfig, files: Files) -> None:
        self._source, self._files = source, files
        self._fingerprints: dict[str, str] = {}
        self._describing: dict[str, list[str]] = {}
        """Folder -> tables that have rows for its pictures, the nearest first."""
        self._missing: dict[str, tuple[str, list[str]]] = {}
        """Folder -> (its table, paths of missing pictures) for tables with such rows or with unreadable ones."""
        self._respelled: dict[str, dict[str, str]] = {}
        """Table -> picture -> path in the table, for the pictures that it spells otherwise."""
        self._used: set[str] = set()
        """Tables that are read for some folder."""
        self._first_uses: Counter[str] = Counter()
        """Folder -> number of tables for which it is the first such folder."""
        self._last: tuple[str, MetadataTable] | None = None
        self._lock = Lock()

    def add(self, uris: Sequence[str], pictures: Sequence[str]) -> None:
        """Find the tables among the files of a listing, and the folders of `pictures` that they describe. Raises
        SourceError."""
        tables = [uri for uri in uris if _split(uri)[1] in TABLE_NAMES and uri not in self._fingerprints]
        known = set(pictures if tables else ())
        respelled = defaultdict(list)
        for picture in known:
            if (form := common_form(picture)) != picture:
                respelled[form].append(picture)
        own: dict[str, str] = {}
        for uri in sorted(tables, key=lambda uri: -uri.count("/")):
            folder, name = _split(uri)
            if (table := self._first_read(uri)) is None:
                continue
            if folder in own:
                raise SourceError(f"{folder}: contains {name} and {own[folder]}; keep one of them")
            own[folder] = name
            found = _pictures_of(table.rows, folder, known, respelled)
            self._respelled[uri] = {each: path for path, each in found.items() if each != f"{folder}/{path}"}
            described = {_split(each)[0] for each in found.values()}
            missing = [path for path in table.rows if path not in found]
            for each in described:
                self._describing.setdefault(each, []).append(uri)
            if missing or table.problems:
                self._missing[folder] = uri, missing
                described.add(folder)
            if described:
                self._used.add(uri)
                self._first_uses[min(described)] += 1

    def is_used(self, uri: str) -> bool:
        """Whether a file is a table that is read for some folder."""
        return uri in self._used

    @property
    def folders(self) -> set[str]:
        """The folders of the tables. Rows without a picture count in their table's folder. Folders whose tables have no
        such rows are included too, because an earlier plan, made when pictures were missing, may contain them."""
        return {_split(uri)[0] for uri in self._used}

    def fingerprint(self, folder: str) -> str:
        """Identifies the content of the tables that describe a folder. Empty if there are none."""
        own, missing = self._missing.get(folder, ("", []))
        tables = dict.fromkeys([*self._describing.get(folder, ()), *[own] * bool(own)])
        return "".join(f"\0{part}" for part in [*(self._fingerprints[uri] for uri in tables), *missing])

    def describe(self, folder: str, names: Sequence[str]) -> Described:
        """What tables say about these pictures of a folder, and about missing ones. Raises SourceError."""
        pictures: dict[str, Rows] = {}
        missing: dict[str, Rows] = {}
        problems: Sequence[str] = ()
        own, paths = self._missing.get(folder, ("", []))
        with self._lock:
            for uri in self._describing.get(folder, ()):
                above, table_name = _split(uri)
                table, respelled = self._read(uri), self._respelled[uri]
                for name in names:
                    picture = f"{folder}/{name}"
                    path = respelled.get(picture) or picture.removeprefix(f"{above}/")
                    if name not in pictures and path in table.rows and _is_below(path):
                        pictures[name] = table_name, table.rows[path]
            if own:
                table = self._read(own)
                missing = {path: (_split(own)[1], table.rows[path]) for path in paths}
                problems = [f"{_split(own)[1]}: {problem}" for problem in table.problems]
        return Described(pictures, missing, problems, self._first_uses[folder])

    def _first_read(self, uri: str) -> MetadataTable | None:
        """None for a table of other things, which has no column `file_name`."""
        if links_outside(uri, trusted_folders(_split(uri)[0], self._source.paths)):  # as for the text beside a picture
            raise SourceError(f"{uri}: is a link to a file outside its folder and the source; copy the file instead")
        if not names_pictures(uri, self._files, self._source):
            return None
        self._fingerprints[uri] = self._fingerprint(uri)
        return self._read(uri)

    def _read(self, uri: str) -> MetadataTable:
        if self._last is None or self._last[0] != uri:
            self._last = None  # frees the memory before the next table is read
            table = read_table(uri, self._files, self._source)
            if self._fingerprint(uri) != self._fingerprints[uri]:
                raise SourceError(f"{uri}: changed while it was being read; start again when it is complete")
            self._last = uri, table
        return self._last[1]

    def _fingerprint(self, uri: str) -> str:
        try:
            return self._files.fingerprint(uri)
        except OSError as error:
            raise SourceError(f"{uri}: cannot be read: {error.strerror or error}") from error


def _split(uri: str) -> tuple[str, str]:
    """(folder, name)."""
    folder, _, name = uri.rpartition("/")
    return folder, name


def _pictures_of(
    paths: Iterable[str], folder: str, pictures: Set[str], respelled: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Path in a table of `folder` -> its picture, for the paths that have one. The picture with exactly this name
    counts. If there is none, it is the only remaining one whose name has the same common form; no other path may claim
    it. `respelled`: common form -> pictures whose names have another form."""
    below = [path for path in paths if _is_below(path)]
    found = {path: picture for path in below if (picture := f"{folder}/{path}") in pictures}
    taken = set(found.values())
    claims = defaultdict(list)
    for path in below:
        if path not in found:
            claims[common_form(f"{folder}/{path}")].append(path)
    for form, claimants in claims.items():
        known = [form] * (form in pictures) + [*respelled.get(form, ())]
        left = [each for each in known if each.startswith(f"{folder}/") and each not in taken]
        if len(left) == len(claimants) == 1:
            found[claimants[0]] = left[0]
    return found


def _is_below(path: str) -> bool:
    """Whether a plain path leads below its folder."""
    return not path.startswith("/") and path.split("/")[0] != ".."
