"""Refuses Delta tables whose folders contain files with changed or deleted rows, or whose files have other columns.

A change to a Delta table leaves the old Parquet files in the folder; only the log says which files are current
(https://github.com/delta-io/delta/blob/master/PROTOCOL.md). If all files were read, changed rows would appear twice,
and deleted rows would reappear. With column mapping, the columns of the files keep the names that they were written
with, so a renamed column would be taken for another one, and dropped columns would reappear.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from pairmill.pipeline.common.files import Files, join
from pairmill.pipeline.common.foreign_parquet import open_parquet
from pairmill.pipeline.common.listing import entries_in
from pairmill.pipeline.common.web_files import WEB_SCHEMES
from pairmill.schemas.errors import FailureKind, PairmillError

READERS = 8

_LOG = "_delta_log"
_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.\d{10}\.\d{10})?\.parquet")
_ROWS = 1_024
_MAPPING_MODE = "delta.columnMapping.mode"


class TableError(PairmillError, ValueError):
    """A folder belongs to a table, and its Parquet files may contain rows that the table no longer has."""

    kind = FailureKind.INPUT


def check_tables(uris: Iterable[str], passed_over: Iterable[str], files: Files) -> set[str]:
    """Check the Delta tables among the folders of these Parquet files, and return their folders.

    Raises TableError if a file is not part of its table's current version, or has rows that are deleted in that
    version. `passed_over`: what else was listed.
    """
    known = {uri.partition(f"/{_LOG}/")[0] for uri in passed_over if f"/{_LOG}/" in uri}
    tables: dict[str, list[str]] = {}
    for uri in uris:
        if uri.lower().endswith(".parquet") and not uri.startswith(WEB_SCHEMES):  # web servers do not list folders
            root = next((folder for folder in folders_above(uri) if folder in known), None) if known else None
            tables.setdefault(root or table_root(uri), []).append(uri)
    with ThreadPoolExecutor(READERS) as pool:
        are_tables = pool.map(lambda root: _check_table(root, tables[root], files), tables)
        return {root for root, is_table in zip(tables, are_tables, strict=True) if is_table}


def _check_table(root: str, uris: Sequence[str], files: Files) -> bool:
    """Check the Parquet files of one folder. False if it is not a Delta table."""
    if not files.is_folder(join(root, _LOG)):
        return False
    current = _current_files(root, files)
    if stale := [uri for uri in uris if uri.removeprefix(f"{root}/") not in current]:
        raise _refusal(
            root, f"{len(stale):,} of its Parquet files, such as {stale[0]}, contain rows that were changed or deleted"
        )
    return True


def _refusal(root: str, problem: str) -> TableError:
    return TableError(
        f"{root}: is a Delta table, and {problem}; write the current version elsewhere, for example with DuckDB: "
        f"copy (from delta_scan('{root}')) to 'list.parquet'"
    )


def folders_above(uri: str) -> Iterator[str]:
    """The folder of a file and all folders above it, the nearest first."""
    while (uri := uri.rpartition("/")[0]) and not uri.endswith(":/"):
        yield uri


def table_root(uri: str) -> str:
    """The folder of the table that a file may belong to: the one above any partition folders, such as `lang=en`. Tables
    with column mapping have other folders, for which only their listed log shows where the table is."""
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
    metadata: dict[str, Any] = {}
    try:
        for match in checkpoints:
            if int(match[1]) == start:
                for action in _checkpoint(join(log, match[0]), files):
                    if any((action.get("metaData") or {}).values()):  # of other actions, it can be a struct of nulls
                        metadata = action["metaData"]
                    if action.get("add"):
                        is_whole |= [_entry(action["add"])]
        for version in later:
            with files.open_decompressed(join(log, commits[version])) as file:
                actions = [json.loads(line) for line in file if line.strip()]
            for action in actions:  # one version may remove a file and add it again with a list of its deleted rows
                is_whole.pop(action.get("remove", {}).get("path"), None)
                metadata = action.get("metaData", metadata)
            is_whole |= dict(_entry(action["add"]) for action in actions if "add" in action)
        problem = _problem_with_columns(metadata, is_whole)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise TableError(f"{log}: the log of this Delta table cannot be read: {error}") from error
    if problem is not None:
        raise _refusal(root, problem)
    return {unquote(path) for path, whole in is_whole.items() if whole}


def _problem_with_columns(metadata: dict[str, Any], paths: Iterable[str]) -> str | None:
    """Why files do not have the columns of the table, or None. `paths`: of the table's files, relative to it."""
    if dict(metadata.get("configuration") or {}).get(_MAPPING_MODE, "none") != "none":
        return "its columns can have other names in its Parquet files (column mapping)"
    num_partitions = len(metadata.get("partitionColumns") or ())
    if any(sum("=" in folder for folder in unquote(path).split("/")[:-1]) < num_partitions for path in paths):
        return "the values of its partitions are only in its log"
    return None


def _checkpoint(uri: str, files: Files) -> Iterator[dict[str, Any]]:
    columns = ["add.path", "add.deletionVector", "sidecar.path", "metaData.configuration", "metaData.partitionColumns"]
    with files.open(uri) as file, open_parquet(file) as parquet:
        for batch in parquet.iter_batches(_ROWS, columns=columns):
            for action in batch.to_pylist():
                if action.get("sidecar"):
                    raise ValueError("it continues in other files (`sidecar`)")
                yield action


def _entry(add: dict[str, object]) -> tuple[str, bool]:
    """(path, whether none of its rows are deleted)."""
    return str(add["path"]), add.get("deletionVector") is None
