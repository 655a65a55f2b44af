"""Provides a dataset of generated metadata, large enough for several chunks, with DuckDB as the oracle."""

from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa
import pytest

from pairmill.jobs.select import select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset import chunks
from pairmill.pipeline.dataset.subset import read_rows, read_subset
from pairmill.schemas.subset import SelectJob, Subset
from tests.synthetic_dataset import write_dataset

ROWS = 12_000

DUCKDB = duckdb.connect(config={"threads": 1})
"""The oracle. Shared, because opening a connection takes longer than most queries."""

Step: TypeAlias = dict[str, object]
"""A select step, as in a job file."""


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12,000 rows in 12 shards; one row in ten repeats a uid."""
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, ROWS, shard_rows=1_000)
    return folder


@pytest.fixture
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide the dataset into several chunks, as if it had millions of rows."""
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 3_000)
    assert chunks.CHUNK_ROWS > 3_000


def make_subset(dataset: Path, name: str, *steps: Step, **more: Any) -> Subset:
    """Select with these steps, overwriting an older subset with the same name."""
    job = {"dataset": str(dataset), "name": name, "steps": list(steps), **more}
    return select(SelectJob.model_validate(job), overwrite=True)


def row_ids(dataset: Path, name: str) -> list[str]:
    """The row_ids of the selected rows, in order, as DuckDB reads them from the written files."""
    store = Store(str(dataset))
    selected = pa.concat_tables(read_rows(store, read_subset(store, name)))
    query = f"""
        with pairs as (select row_id, uid, file_row_number as row,
                              cast(regexp_extract(filename, '(\\d+).parquet', 1) as bigint) as shard
                       from read_parquet('{dataset}/pairs/*.parquet', filename = true, file_row_number = true))
        select row_id from selected join pairs using (shard, row, uid) order by shard, row
    """
    found = [row[0] for row in DUCKDB.execute(query).fetchall()]
    assert len(found) == selected.num_rows
    return found


def oracle(dataset: Path, sql: str) -> list[str]:
    """The row_ids from a query over `rows` (the kept rows, one per uid), in the order of the dataset, `row_index`."""
    query = f"""
        with all_rows as (select *, row_number() over (order by filename, file_row_number) as row_index
                          from read_parquet('{dataset}/pairs/*.parquet', filename = true, file_row_number = true)),
             rows as (select * from all_rows where status = 'ok'
                      qualify row_number() over (partition by uid order by row_index) = 1),
             answer as ({sql})
        select row_id from answer order by row_index
    """
    return [row[0] for row in DUCKDB.execute(query).fetchall()]
