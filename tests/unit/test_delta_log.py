"""Tests that the folder of a Delta table is read if its files are exactly the current table, and otherwise refused;
folders of Iceberg, Hudi and Paimon tables are always refused.

The oracle is the list of files that each generated change leaves in the table. The logs follow
https://github.com/delta-io/delta/blob/master/PROTOCOL.md.
"""

import json
import tempfile
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pairmill.pipeline.common.delta_log import TableError, check_tables
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.listing import list_path
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.sources import Source, open_source
from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.plan import make_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.known import KnownRows
from pairmill.schemas.record import JobRecord

VECTOR = {
    "storageType": "u",
    "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^",
    "offset": 4,
    "sizeInBytes": 40,
    "cardinality": 1,
}


class DeltaTable:
    """A table to which each change adds one commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.version = 0
        self.metadata: dict[str, object] = {"configuration": {"delta.appendOnly": "false"}, "partitionColumns": []}
        self.current: dict[str, bool] = {}
        """File in the current version -> whether all its rows are in that version too."""
        (root / "_delta_log").mkdir(parents=True)
        self._commit([{"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}, {"metaData": self.metadata}])

    def append(self, folder: str = "") -> None:
        self._commit([self._add(folder)])

    def overwrite(self) -> None:
        removed = [self._remove(name) for name in list(self.current)]
        self._commit([self._add(), *removed])  # actions in a commit have no order

    def delete_rows(self) -> None:
        if name := next(iter(self.current), None):
            remove = self._remove(name)
            self.current[name] = False
            self._commit([{"add": {"path": quote(name), "deletionVector": VECTOR}}, remove])

    def change_data(self) -> None:
        """Rewrite a file and record its old and new rows, as with delta.enableChangeDataFeed."""
        if name := next(iter(self.current), None):
            removed, added = self._remove(name), self._add()
            change = self.root / f"_change_data/cdc-{self.version}.parquet"
            change.parent.mkdir(exist_ok=True)
            pq.write_table(pa.table({"url": ["http://a.org/old"], "_change_type": ["update_preimage"]}), change)
            self._commit([removed, added, {"cdc": {"path": f"_change_data/{change.name}", "dataChange": False}}])

    def map_columns(self) -> None:
        """Allow columns to be renamed without changes to the files."""
        self.metadata = {**self.metadata, "configuration": {"delta.columnMapping.mode": "name"}}
        self._commit([{"metaData": self.metadata}])

    def partition_by(self, *columns: str) -> None:
        """Declare columns whose values are in the log and, usually, in the names of folders."""
        self.metadata = {**self.metadata, "partitionColumns": list(columns)}
        self._commit([{"metaData": self.metadata}])

    def checkpoint(self) -> None:
        """Write a checkpoint and delete the commits before it."""
        adds = [
            {"path": quote(name), "deletionVector": None if whole else VECTOR} for name, whole in self.current.items()
        ]
        kind = pa.struct({"path": pa.string(), "deletionVector": pa.struct({"storageType": pa.string()})})
        rest = pa.struct(
            {"configuration": pa.map_(pa.string(), pa.string()), "partitionColumns": pa.list_(pa.string())}
        )
        metadata = pa.array([self.metadata, *[None] * len(adds)], rest)
        table = pa.table({"add": pa.array([None, *adds], kind), "metaData": metadata})
        pq.write_table(table, self.root / f"_delta_log/{self.version - 1:020d}.checkpoint.parquet")
        for commit in (self.root / "_delta_log").glob("*.json"):
            commit.unlink()

    def _add(self, folder: str = "") -> dict[str, object]:
        name = f"{folder}part-{self.version}.parquet"
        (self.root / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"url": [f"http://a.org/{self.version}"]}), self.root / name)
        self.current[name] = True
        return {"add": {"path": quote(name), "size": 1, "dataChange": True}}

    def _remove(self, name: str) -> dict[str, object]:
        del self.current[name]
        return {"remove": {"path": quote(name), "dataChange": True}}

    def _commit(self, actions: list[dict[str, object]]) -> None:
        lines = "".join(json.dumps(action) + "\n" for action in actions)
        (self.root / f"_delta_log/{self.version:020d}.json").write_text(lines)
        self.version += 1


def plan(table: Path, output: Path) -> Plan:
    job = BuildJob.model_validate({"source": {"paths": [str(table)]}, "output": str(output)})
    return make_plan(JobRecord(job, "job"), Store(job.output))


def known_rows(path: Path) -> Source:
    return open_source(KnownRows(path=str(path)), Files(), None)


CHANGES = {
    "append": DeltaTable.append,
    "partition": lambda table: table.append("lang=e n/"),
    "random prefix": lambda table: table.append("aB/"),  # with column mapping or delta.randomizeFilePrefixes
    "overwrite": DeltaTable.overwrite,
    "delete rows": DeltaTable.delete_rows,
    "change data": DeltaTable.change_data,
    "checkpoint": DeltaTable.checkpoint,
    "map columns": DeltaTable.map_columns,
}


@given(st.lists(st.sampled_from(list(CHANGES)), min_size=1, max_size=6), st.booleans())
@example(["append", "partition", "checkpoint", "append"], False)
@example(["append", "overwrite"], False)
@example(["append", "overwrite", "checkpoint"], True)
@example(["random prefix", "append", "overwrite"], False)
@example(["append", "change data"], True)
@example(["append", "map columns", "checkpoint", "append"], True)
@settings(deadline=None)
def test_a_table_is_read_only_if_all_rows_of_all_files_are_in_its_current_version(
    changes: list[str], vacuum: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = DeltaTable(Path(folder, "list"))
        for change in changes:
            CHANGES[change](table)
        for path in table.root.rglob("part-*.parquet"):
            if vacuum and str(path.relative_to(table.root)) not in table.current:
                path.unlink()
        present = {str(path.relative_to(table.root)): path for path in table.root.rglob("part-*.parquet")}
        is_sound = present.keys() == table.current.keys() and all(table.current.values())
        is_sound &= "map columns" not in changes or not present
        listing = list_path(str(table.root), Files())
        assert set(listing.files) == set(map(str, present.values()))
        try:
            check_tables(listing.files, listing.passed_over, Files())
        except TableError as error:
            assert not is_sound
            assert "is a Delta table" in str(error)
        else:
            assert is_sound


def test_a_table_with_deleted_rows_is_refused_unless_it_was_planned_before(tmp_path: Path) -> None:
    table = DeltaTable(tmp_path / "list")
    table.append()
    before = plan(table.root, tmp_path / "out")
    table.delete_rows()  # adds no Parquet file
    assert plan(table.root, tmp_path / "out").num_rows == before.num_rows == 1
    table.overwrite()
    for output in ("out", "new"):
        with pytest.raises(SourceError, match=r"list: is a Delta table, and 1 of its .*changed or deleted; write"):
            plan(table.root, tmp_path / output)
    with pytest.raises(KnownError, match=r"list: is a Delta table, and 1 of its .*changed or deleted; write"):
        known_rows(table.root)


@pytest.mark.parametrize(
    ("folder", "columns"), [("lang=en/", ["lang"]), ("aB/", ["lang"]), ("lang=en/", ["lang", "b"])]
)
@pytest.mark.parametrize("is_checkpoint", [False, True])
def test_a_table_is_read_only_if_the_values_of_its_partitions_are_in_the_names_of_folders(
    tmp_path: Path, folder: str, columns: list[str], is_checkpoint: bool
) -> None:
    table = DeltaTable(tmp_path / "list")
    table.partition_by(*columns)
    table.append(folder)
    if is_checkpoint:
        table.checkpoint()
    if folder == "lang=en/" and columns == ["lang"]:
        assert plan(table.root, tmp_path / "out").mapping.extra.names == ["lang"]
    else:
        with pytest.raises(SourceError, match="the values of its partitions are only in its log; write"):
            plan(table.root, tmp_path / "out")


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "sidecar"])
def test_a_log_that_cannot_be_read_raises_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    table = DeltaTable(tmp_path / "list")
    table.append()
    log = tmp_path / "list/_delta_log"
    first = log / f"{0:020d}.json"
    if damage == "missing":
        first.unlink()
    elif damage == "sidecar":
        sidecar = pa.array([{"path": "a.parquet"}])
        pq.write_table(pa.table({"add": pa.nulls(1), "sidecar": sidecar}), log / f"{1:020d}.checkpoint.parquet")
    else:
        first.write_text('{"add": {' if damage == "cut" else '{"add": 7}')
    with pytest.raises(SourceError, match="_delta_log: the log of this Delta table"):
        plan(table.root, tmp_path / "out")


SNAPSHOT_TABLES = {
    "iceberg": (["t/data/a.parquet"], ["t/metadata/v1.metadata.json", "t/metadata/version-hint.text"]),
    "iceberg of a catalog": (
        ["t/data/lang=en/a.parquet"],
        ["t/metadata/00001-0a2b4c6d-0a2b-0a2b-0a2b-0a2b4c6d8e0f.gz.metadata.json"],
    ),
    "iceberg, migrated in place": (["t/a.parquet"], ["t/metadata/v2.metadata.json"]),
    "iceberg, migrated from partitions": (["t/lang=en/b=1/a.parquet"], ["t/metadata/v2.metadata.json"]),
    "paimon": (["t/bucket-0/data-1-0.parquet"], ["t/snapshot/snapshot-1", "t/schema/schema-0"]),
    "hudi": (["t/a.parquet"], ["t/.hoodie/hoodie.properties"]),
    "hudi by day": (["t/2020/01/a.parquet"], ["t/2020/01/.hoodie_partition_metadata"]),
    "none": (["t/data/a.parquet"], ["t/metadata/about.json", "t/.git/config"]),
}


@pytest.mark.parametrize("kind", SNAPSHOT_TABLES)
def test_a_folder_of_a_table_with_snapshots_is_refused_but_a_glob_of_its_files_is_read(
    tmp_path: Path, kind: str
) -> None:
    (data,), others = SNAPSHOT_TABLES[kind]
    for name in [data, *others]:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    pq.write_table(pa.table({"url": ["http://a.org/1"]}), tmp_path / "in" / data)
    folders = [tmp_path / "in", (tmp_path / "in" / data).parent]
    for number, source in enumerate(folders[:1] if kind == "paimon" else folders):  # a bucket alone shows no table
        if kind == "none":
            assert plan(source, tmp_path / f"out{number}").num_rows == 1
            known_rows(source)
            continue
        with pytest.raises(
            SourceError, match=r"belongs to an? (Iceberg|Hudi|Paimon) table.*glob, such as .*\*\.parquet"
        ):
            plan(source, tmp_path / f"out{number}")
        with pytest.raises(
            KnownError, match=r"belongs to an? (Iceberg|Hudi|Paimon) table.*glob, such as .*\*\.parquet"
        ):
            known_rows(source)
    glob = (tmp_path / "in" / data).parent / "*.parquet"
    assert plan(glob, tmp_path / "out").num_rows == 1
    assert plan(tmp_path / "in" / data, tmp_path / "one").num_rows == 1
    known_rows(glob)


def test_a_delta_table_that_readers_of_iceberg_can_also_read_is_judged_by_its_log(tmp_path: Path) -> None:
    """Apache XTable, for example, puts metadata of Iceberg beside the log."""
    table = DeltaTable(tmp_path / "list")
    table.append()
    table.append("lang=en/")
    (table.root / "metadata").mkdir()
    (table.root / "metadata/v1.metadata.json").touch()
    assert plan(table.root, tmp_path / "out").num_rows == 2
    assert plan(table.root / "lang=en", tmp_path / "part").num_rows == 1
    known_rows(table.root)
    table.overwrite()
    with pytest.raises(SourceError, match="is a Delta table"):
        plan(table.root, tmp_path / "new")


def test_a_data_folder_whose_delta_log_is_not_looked_for_is_refused_as_icebergs(tmp_path: Path) -> None:
    table = DeltaTable(tmp_path / "list")
    table.append("data/")
    (table.root / "metadata").mkdir()
    (table.root / "metadata/v1.metadata.json").touch()
    with pytest.raises(SourceError, match="belongs to an Iceberg table"):
        plan(table.root / "data", tmp_path / "out")
