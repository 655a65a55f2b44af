"""Refuses the folders of Iceberg and Hudi tables, which contain Parquet files of older versions and deleted rows.

Only the table's metadata says which files and rows are current: https://iceberg.apache.org/spec/#table-metadata and
https://hudi.apache.org/tech-specs/#storage-layout. If all files were read, changed rows would appear twice, and deleted
rows would reappear. Files that a path or glob names are read as they are.
"""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from pairmill.pipeline.common.delta_log import READERS, TableError
from pairmill.pipeline.common.files import Files, join
from pairmill.pipeline.common.listing import entries_in

_ICEBERG = re.compile(r"(v\d+|\d+-[0-9a-f-]{36})(\.gz)?\.metadata\.json(\.gz)?")
"""Matches the names of metadata files, as Hadoop tables and other catalogs write them."""
_HUDI = "/.hoodie"  # the metadata of a table is in `.hoodie/`, and each partition has a `.hoodie_partition_metadata`


def refuse_snapshot_tables(in_folders: Iterable[str], passed_over: Iterable[str], files: Files) -> None:
    """Raise TableError if a listed folder is, or is in, an Iceberg or Hudi table. `in_folders`: the listed files that
    neither a path nor a glob names."""
    data = [uri for uri in in_folders if uri.lower().endswith(".parquet")]
    for root in {uri.partition(_HUDI)[0] for uri in passed_over if _HUDI in uri}:
        if any(uri.startswith(f"{root}/") for uri in data):
            raise _refusal(root, "a Hudi", data)
    roots = sorted({uri.rpartition("/data/")[0] for uri in data if "/data/" in uri})
    with ThreadPoolExecutor(READERS) as pool:
        for root, is_table in zip(roots, pool.map(lambda root: _is_iceberg(root, files), roots), strict=True):
            if is_table:
                raise _refusal(root, "an Iceberg", data)


def _is_iceberg(root: str, files: Files) -> bool:
    folder = join(root, "metadata")
    return files.is_folder(folder) and any(_ICEBERG.fullmatch(entry.name) for entry in entries_in(folder, files))


def _refusal(root: str, kind: str, data: Iterable[str]) -> TableError:
    folder = min(uri for uri in data if uri.startswith(f"{root}/")).rpartition("/")[0]
    return TableError(
        f"{root}: belongs to {kind} table, whose Parquet files may have changed or deleted rows; export the "
        f"current version to Parquet, or name the files with a glob, such as {join(folder, '*.parquet')}, which reads "
        "them as they are"
    )
