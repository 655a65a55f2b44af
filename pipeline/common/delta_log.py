"""Refuses Delta tables whose folders contain files with changed or deleted rows.

A change to a Delta table leaves the old Parquet files in the folder; only the log says which files are current
(https://github.com/delta-io/delta/blob/master/PROTOCOL.md). If all files were read, changed rows would appear twice,
and deleted rows would reappear.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import pyarrow as pa

from pairmill.pipeline.common.files import Files, join
from pairmill.pipeline.common.foreign_parquet import open_parquet
from pairmill.pipeline.common.listing import entries_in
from pairmill.schemas.errors import FailureKind, PairmillError

READERS = 8

_LOG = "_delta_log"
_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.\d{10}\.\d{10})?\.parquet")
_ROWS = 1_024


class TableError(PairmillError, ValueError):
    """A folder belongs to a table, and its Parquet files may contain rows that the table no longer has."""

    kind = FailureKind.INPUT


def check_tables(uris: Iterable[str], files: Files) -> None:
    """Raise TableError if one of these Parquet files is in the folder of a Delta table but is not part of the table's
    current version, or has rows that are deleted in that version."""
    tables: dict[str, list[str]] = {}
    for uri in uris:
        if uri.lower().endswith(".parquet"):
            tables.setdefault(_root(uri), []).append(uri)
    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(lambda root: _check_table(root, tables[root], files), tables):
            pass


def _check_table(root: str, uris: Sequence[str], files: Files) -> None:
    """Check the Parquet files of one folder, which need not be a Delta table."""
    if not files.is_folder(join(root, _LOG)):
        return
    current = _current_files(root, files)
    if stale := [uri for uri in uris if uri.removeprefix(f"{root}/") not in current]:
        raise TableError(
            f"{root}: is a Delta table, and {len(stale):,} of its Parquet files, such as {stale[0]}, contain rows that "
            "were changed or deleted; write the current version elsewhere, for example with DuckDB: "
            f"copy (from delta_scan('{root}')) to 'list.parquet'"
        )


def _root(uri: str) -> str:
    """The folder of the table that a file may belong to: the one above any partition folders, such as `lang=en`."""
    folders = uri.split("/")[:-1]
    while "=" in folders[-1]:
        folders.pop()
    return "/".join(folders)


def _current_files(root: str, files: Files) -> set[str]:
    """Paths, relative to the table, of the files whose rows are all in the table's current version. Raises TableError
    if the log cannot be read."""
    log = join(root, _LOG)
    names = sorted(entry.name for entry in entries_in(log, files))
    commits = {int(match[1]): match[0] for match in map(_COMMIT.fullmatch, names) if match}
    checkpoints = [match for match in map(_CHECKPOINT.fullmatch, names) if match]
    start = max((int(match[1]) for match in checkpoints), default=-1)
    later = [version for version in sorted(commits) if version > start]
    if later != list(range(start + 1, start + 1 + len(later))) or not (later or checkpoints):
        raise TableError(f"{log}: the log of this Delta table is incomplete or in an unknown format")
    is_whole: dict[str, bool] = {}
    try:
        for match in checkpoints:
            if int(match[1]) == start:
                is_whole |= dict(_added_in_checkpoint(join(log, match[0]), files))
        for version in later:
            with files.open_decompressed(join(log, commits[version])) as file:
                actions = [json.loads(line) for line in file if line.strip()]
            for action in actions:  # one version may remove a file and add it again with a list of its deleted rows
                is_whole.pop(action.get("remove", {}).get("path"), None)
            is_whole |= dict(_entry(action["add"]) for action in actions if "add" in action)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise TableError(f"{log}: the log of this Delta table cannot be read: {error}") from error
    return {unquote(path) for path, whole in is_whole.items() if whole}


def _added_in_checkpoint(uri: str, files: Files) -> Iterator[tuple[str, bool]]:
    with files.open(uri) as file, open_parquet(file) as parquet:
        for batch in parquet.iter_batches(_ROWS, columns=["add.path", "add.deletionVector", "sidecar.path"]):
            for action in batch.to_pylist():
                if action.get("sidecar"):
                    raise ValueError("it continues in other files (`sidecar`)")
                if action.get("add"):
                    yield _entry(action["add"])


def _entry(add: dict[str, object]) -> tuple[str, bool]:
    """(path, whether none of its rows are deleted)."""
    return str(add["path"]), add.get("deletionVector") is None
