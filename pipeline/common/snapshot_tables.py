"""Refuses the folders of Iceberg, Hudi and Paimon tables, which contain files of older versions and deleted rows.

Only the table's metadata says which files and rows are current: https://iceberg.apache.org/spec/#table-metadata,
https://hudi.apache.org/tech-specs/#storage-layout and https://paimon.apache.org/docs/master/concepts/spec/overview/.
If all files were read, changed rows would appear twice, and deleted rows would reappear. Files that a path or glob
names are read as they are.
"""

import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

from pairmill.pipeline.common.delta_log import READERS, TableError, folders_above, table_root
from pairmill.pipeline.common.files import Files, join
from pairmill.pipeline.common.listing import entries_in

_ICEBERG = re.compile(r"(v\d+|\d+-[0-9a-f-]{36})(\.gz)?\.metadata\.json(\.gz)?")
"""Matches the names of metadata files, as Hadoop tables and other catalogs write them."""
_MARKS = {
    "an Iceberg": re.compile(rf"(.*)/metadata/{_ICEBERG.pattern}", re.DOTALL),
    "a Hudi": re.compile(r"(.*?)/\.hoodie.*", re.DOTALL),  # each partition has a `.hoodie_partition_metadata`
    "a Paimon": re.compile(r"(.*)/schema/schema-\d+", re.DOTALL),
}
"""Kind of table -> the metadata in its folder."""


def refuse_snapshot_tables(
    in_folders: Iterable[str], passed_over: Collection[str], checked: Collection[str], files: Files
) -> None:
    """Raise TableError if a listed folder is, contains or is in such a table.

    Args:
        in_folders: The listed files that neither a path nor a glob names.
        passed_over: What else was listed.
        checked: Folders of Delta tables, which can have metadata of Iceberg, too, and are judged by their own log.
        files: Lists the folders that contain the metadata.
    """
    data = [uri for uri in in_folders if uri.lower().endswith(".parquet")]
    if not data:
        return
    folders = {uri.rpartition("/")[0] for uri in data}
    parents = {each for folder in folders for each in folders_above(f"{folder}/")}
    kinds = {
        match[1]: kind
        for kind, mark in _MARKS.items()
        for match in map(mark.fullmatch, passed_over)
        if match and match[1] in parents
    }
    # The metadata is not listed if the job names only a folder with data.
    others = sorted({uri.rpartition("/data/")[0] for uri in data if "/data/" in uri} | set(map(table_root, data)))
    with ThreadPoolExecutor(READERS) as pool:
        is_iceberg = pool.map(lambda root: _is_iceberg(root, files), others)
        kinds |= {root: "an Iceberg" for root, is_table in zip(others, is_iceberg, strict=True) if is_table}
    for root, kind in sorted(kinds.items()):
        if root not in checked:
            raise _refusal(root, kind, data)


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
