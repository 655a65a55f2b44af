"""Tests `pairmill.open` on generated metadata against the rows and columns that DuckDB reads from the same files."""

import json
import pickle
from collections import Counter
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pytest

import pairmill
from pairmill.pipeline.dataset.subset import SubsetError
from pairmill.pipeline.reader.snapshot import DatasetError
from pairmill.pipeline.source.planned import PlanError
from tests.synthetic_dataset import write_dataset
from tests.unit.select.added import add_columns
from tests.unit.select.conftest import DUCKDB, Step, make_subset, row_ids

ROWS = 1_500


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen shards, the subset `wide` of the rows wider than 500 pixels, and the added model `extra`."""
    folder = tmp_path_factory.mktemp("small")
    write_dataset(folder, ROWS, shard_rows=100)
    make_subset(folder, "wide", {"where": "width > 500"})
    add_columns(folder, "extra", range(15))
    return folder


def query(folder: Path, columns: str) -> list[tuple[object, ...]]:
    pairs = f"read_parquet('{folder}/pairs/*.parquet', filename = true, file_row_number = true)"
    return DUCKDB.execute(f"select {columns} from {pairs} order by filename, file_row_number").fetchall()


def test_a_table_has_the_rows_of_all_shards_in_order_with_the_requested_columns(small: Path) -> None:
    dataset = pairmill.open(small)
    table = dataset.table(["width", "uid"])
    assert table.column_names == ["width", "uid"]
    assert list(zip(*(column.to_pylist() for column in table), strict=True)) == query(small, "width, uid")
    assert len(dataset) == ROWS == dataset.table("url").num_rows
    assert dataset.table().schema.equals(dataset.schema)


def test_columns_of_an_added_model_are_aligned_with_their_rows(small: Path) -> None:
    table = pairmill.open(str(small)).table(["row_id", "similarity_extra"])
    added = DUCKDB.execute(f"select row_id, similarity_extra from '{small}/columns/extra/*.parquet'")
    assert dict(zip(*(column.to_pylist() for column in table), strict=True)) == dict(added.fetchall())


def test_a_subset_keeps_its_added_models_when_the_dataset_grows(tmp_path: Path) -> None:
    write_dataset(tmp_path, 300, shard_rows=100)
    add_columns(tmp_path, "extra", range(3))
    make_subset(tmp_path, "wide", {"where": "width > 500"})
    names = ["uid", "similarity_extra"]
    before = pairmill.open(tmp_path).table(names, subset="wide")
    write_dataset(tmp_path, 400, shard_rows=100)
    grown = pairmill.open(tmp_path)
    assert grown.table(names, subset="wide").equals(before)
    assert [row["similarity_extra"] for row in grown.subset("wide").rows(names, pictures=False)] == before[
        1
    ].to_pylist()
    assert set(names) <= set(grown.subset("wide").table().column_names)
    with pytest.raises(DatasetError, match="'similarity_extra': some shards lack the model 'extra'; run: "):
        grown.table(names)
    add_columns(tmp_path, "extra", [3])
    assert len(pairmill.open(tmp_path).table(names)) == 400


def test_a_subset_is_a_view_with_the_same_methods(small: Path) -> None:
    dataset = pairmill.open(small)
    view = dataset.subset("wide")
    assert dataset.subsets == ["wide"]
    assert view.table("row_id").equals(dataset.table("row_id", subset="wide"))
    assert view.table("row_id")["row_id"].to_pylist() == row_ids(small, "wide")
    assert 0 < len(view) == view.table("uid").num_rows < ROWS
    assert view.statuses == {"ok": len(view)}
    assert [row["row_id"] for row in view.rows("row_id", pictures=False)] == row_ids(small, "wide")
    assert view.schema.equals(dataset.schema)


def test_statuses_are_counted_over_all_rows(small: Path) -> None:
    assert pairmill.open(small).statuses == Counter(row[0] for row in query(small, "status"))


def test_pandas_gets_exact_integers_beyond_2_to_the_53_with_and_without_nulls(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As float64, 2^53 + 1 would become 2^53 (pandas#56678)."""
    columns = {"few": [1, None], "large": [2**53 + 1, None], "whole": [2**53 + 1, 2]}
    dataset = pairmill.open(small)
    monkeypatch.setattr(type(dataset), "table", lambda *_: pa.table(columns))
    frame = dataset.to_pandas()
    assert list(frame.columns) == list(columns)
    assert frame["few"].dtype == "float64"
    assert frame["large"].tolist() == columns["large"]
    assert frame["whole"].dtype == "int64"


LARGE = 2**53 + 1
NESTED = {
    "list": pa.array([[LARGE, None], None, []]),
    "vector": pa.array([[LARGE, None], None, [1, 2]], pa.list_(pa.uint64(), 2)),
    "struct": pa.array([{"a": {"b": LARGE}}, {"a": None}, None]),
    "in a list": pa.array([[{"a": LARGE}], [{"a": None}], None]),
    "map": pa.array([[("k", LARGE), ("l", None)], None, []], pa.map_(pa.string(), pa.int64())),
    "keys": pa.array([[(LARGE, None)], None, []], pa.map_(pa.int64(), pa.int8())),
}


@pytest.mark.parametrize("name", NESTED)
def test_pandas_gets_exact_integers_in_lists_structs_and_maps(
    small: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As float64, 2^53 + 1 would become 2^53 (arrow#26482)."""
    dataset = pairmill.open(small)
    monkeypatch.setattr(type(dataset), "table", lambda *_: pa.table({name: NESTED[name]}))
    found = [value.tolist() if hasattr(value, "tolist") else value for value in dataset.to_pandas()[name]]
    assert found == NESTED[name].to_pylist()


def test_a_column_that_is_named_twice_is_read_once(small: Path) -> None:
    dataset, names = pairmill.open(small), ["uid", "width", "uid"]
    assert dataset.table(names).column_names == list(dataset.to_pandas(names)) == ["uid", "width"]
    assert dataset.to_polars(names).columns == list(next(dataset.rows(names))) == ["uid", "width"]


def test_a_dataset_can_be_pickled_before_and_after_lookups_by_uid(small: Path) -> None:
    dataset = pairmill.open(small).subset("wide")
    for _ in range(2):
        copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
        assert copy.table("uid").equals(dataset.table("uid"))
        with pytest.raises(DatasetError, match="no row with the uid"):
            dataset.picture("0" * 32)


def test_pandas_and_polars_get_the_same_values(small: Path) -> None:
    dataset = pairmill.open(small)
    names = ["uid", "width", "similarity"]
    rows = dataset.table(names).to_pylist()
    assert dataset.to_polars(names).rows(named=True) == rows
    frame = dataset.to_pandas(names)
    assert frame["uid"].tolist() == [row["uid"] for row in rows]
    assert int(frame["similarity"].isna().sum()) == sum(row["similarity"] is None for row in rows) > 0


def test_rows_have_the_values_of_their_columns(small: Path) -> None:
    dataset = pairmill.open(small)
    names = ["uid", "caption", "width"]
    rows = [tuple(row[name] for name in names) for row in dataset.rows(names)]
    assert rows == query(small, "uid, caption, width")
    first = next(dataset.rows(names))
    assert dict(first) == first.values == {name: first[name] for name in first} and list(first) == names
    assert "caption" in first and "height" not in first
    assert sum(1 for _ in dataset.rows([])) == sum(1 for _ in dataset.rows([], pictures=False)) == ROWS


def test_only_the_newest_generation_of_a_committed_shard_counts(tmp_path: Path) -> None:
    write_dataset(tmp_path, 300, shard_rows=100)
    before = pairmill.open(tmp_path)
    assert before.table("uid").num_rows == 300
    first = tmp_path / "manifests/000000000.json"
    manifest = json.loads(first.read_bytes())
    import pyarrow.parquet as pq

    newer = pq.read_table(tmp_path / "pairs/000000000.parquet").slice(0, 40)
    pq.write_table(newer, tmp_path / "pairs/000000000.g1.parquet")
    files = {"pairs": {**manifest["files"]["pairs"], "path": "pairs/000000000.g1.parquet"}}
    newest = {**manifest, "generation": 1, "pairs": 40, "files": files}
    (tmp_path / "manifests/000000000.g1.json").write_text(json.dumps(newest))
    (tmp_path / "manifests/000000002.json").unlink()  # the shard's data files exist but do not count
    after = pairmill.open(tmp_path)
    assert len(after) == after.table("uid").num_rows == 40 + 100
    assert after.table("row_id")["row_id"].to_pylist()[:40] == newer["row_id"].to_pylist()
    first.unlink()
    (tmp_path / "pairs/000000000.parquet").unlink()
    with pytest.raises(DatasetError, match="is missing; if no other command has just changed"):
        before.table("uid")


def test_a_missing_column_subset_uid_or_dataset_is_named(small: Path, tmp_path: Path) -> None:
    dataset = pairmill.open(small)
    with pytest.raises(DatasetError, match="no column 'similarty'; did you mean 'similarity'"):
        dataset.table("similarty")
    with pytest.raises(DatasetError, match="no column 'zzz'; it has: row_id, uid"):
        list(dataset.rows(["uid", "zzz"]))
    with pytest.raises(SubsetError, match="no subset 'narrow'; it has: wide"):
        dataset.subset("narrow")
    with pytest.raises(DatasetError, match="this is the subset 'wide'"):
        dataset.subset("wide").subset("wide")
    for uid in ("0" * 32, "no uid", ""):
        with pytest.raises(DatasetError, match="no row with the uid"):
            dataset.picture(uid)
    with pytest.raises(PlanError):
        pairmill.open(tmp_path)


def test_a_lookup_by_uid_returns_the_first_row(small: Path) -> None:
    dataset = pairmill.open(small)
    uids = dataset.table("uid")["uid"].to_pylist()
    assert len(set(uids)) < len(uids)
    for number in (0, 99, 100, 777, ROWS - 1):
        position, row = dataset._uids.find(uids[number]) or (-1, -1)
        assert 100 * position + row == uids.index(uids[number])
    with pytest.raises(DatasetError, match="no picture is stored"):
        dataset.picture(str(UUID(uids[5])).upper())


def test_an_outdated_subset_is_refused_when_read(tmp_path: Path) -> None:
    write_dataset(tmp_path, 300, shard_rows=100)
    make_subset(tmp_path, "some", {"where": "width > 500"})
    path = tmp_path / "manifests/000000001.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"]["pairs"]["blake2b"] = "0" * 32
    path.write_text(json.dumps(manifest))
    with pytest.raises(SubsetError, match="select again"):
        len(pairmill.open(tmp_path).subset("some"))


WEIGHTED: list[Step] = [{"top": {"by": "similarity", "count": 50}}, {"repeat": {"weight": "width"}}]
FEWER: list[Step] = [{"where": "width > 900"}]


@pytest.mark.parametrize("before", [WEIGHTED, FEWER])
@pytest.mark.parametrize("after", [[*FEWER, WEIGHTED[1]], [WEIGHTED[0], {"repeat": {"weight": "2 * width"}}], FEWER])
def test_a_view_of_a_subset_never_shows_rows_of_one_selection_with_values_of_another(
    tmp_path: Path, before: list[Step], after: list[Step]
) -> None:
    """It stays as it was opened, or says that the subset was selected again."""
    write_dataset(tmp_path, 300, shard_rows=100)
    make_subset(tmp_path, "some", *before)
    expected = pairmill.open(tmp_path).subset("some").table()
    unread, counted, half_read = (pairmill.open(tmp_path).subset("some") for _ in range(3))
    assert len(counted) == expected.num_rows
    assert half_read.schema == expected.schema
    make_subset(tmp_path, "some", *after)
    for view in (unread, counted, half_read):
        try:
            assert view.table() == expected
        except DatasetError as error:
            assert "'some' was selected again, or changed by a purge, since it was opened; open it" in str(error)
    assert pairmill.open(tmp_path).table(subset="some").num_rows == len(row_ids(tmp_path, "some"))


def test_a_subset_that_is_newer_than_the_opened_dataset_is_not_called_outdated(tmp_path: Path) -> None:
    write_dataset(tmp_path, 200, shard_rows=100)
    opened = pairmill.open(tmp_path)
    write_dataset(tmp_path, 300, shard_rows=100)
    make_subset(tmp_path, "some", {"where": "width > 500"})
    with pytest.raises(SubsetError, match="has changed since it was opened, before 'some' was selected; open it again"):
        opened.table(subset="some")
    assert len(pairmill.open(tmp_path).table(subset="some"))


def test_embeddings_are_float16_arrays_in_rows_and_fixed_size_lists_in_tables() -> None:
    from pairmill.pipeline.reader.dataset import _python
    from pairmill.schemas.pairs import embedding_type

    values = pa.chunked_array(
        [pa.array([[1.0, 2.0], None], embedding_type(2)), pa.array([[3.0, 4.0]], embedding_type(2))]
    )
    first, second, third = _python(values)
    assert (first.dtype, first.tolist(), second, third.tolist()) == ("float16", [1.0, 2.0], None, [3.0, 4.0])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.string(), ["a", None]),
        (pa.bool_(), [True, False]),
        (pa.bool_(), [None, True]),
        (pa.int64(), [2**53 + 1, None]),
        (pa.int64(), [2**53 + 1, 2]),
        (pa.float32(), [0.5, None]),
        (pa.decimal128(5, 2), [Decimal("1.25"), None]),
        (pa.timestamp("us"), [datetime(2026, 1, 31), None]),
        (pa.list_(pa.int8(), 1), [[1], None]),
    ],
    ids=str,
)
def test_rows_have_vectors_of_any_type(kind: pa.DataType, values: list[object]) -> None:
    from pairmill.pipeline.reader.dataset import _python

    column = pa.chunked_array([pa.array([values, None], pa.list_(kind, 2)), pa.array([values], pa.list_(kind, 2))])
    found = [value.tolist() if hasattr(value, "tolist") else value for value in _python(column)]
    assert found == [values, None, values]
