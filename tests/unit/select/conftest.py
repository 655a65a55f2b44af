"""A dataset of made-up metadata, large enough for several chunks, and DuckDB beside it as the oracle."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from pairmill.jobs.select import select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset import chunks
from pairmill.pipeline.dataset.subset import read_subset, read_tables
from pairmill.schemas.subset import SelectJob, Subset
from tests.synthetic_dataset import write_dataset

ROWS = 12_000


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12,000 rows in 30 shards; one in ten repeats a uid."""
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, ROWS, shard_rows=400)
    return folder


@pytest.fixture
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few shards, as a dataset of a hundred million rows has."""
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", 3_000)
    assert chunks.CHUNK_ROWS > 3_000


def choose(dataset: Path, name: str, *steps: dict[str, Any], **more: Any) -> Subset:
    """The choice, made and written."""
    job = {"dataset": str(dataset), "name": name, "steps": list(steps), **more}
    return select(SelectJob.model_validate(job), overwrite=True)


def row_ids(dataset: Path, name: str) -> list[str]:
    """Of the chosen rows, in order, by DuckDB from the written files."""
    store = Store(str(dataset))
    chosen = pa.concat_tables(read_tables(store, read_subset(store, name), "rows"))
    query = f"""
        with pairs as (select row_id, uid, file_row_number as row,
                              cast(regexp_extract(filename, '(\\d+).parquet', 1) as bigint) as shard
                       from read_parquet('{dataset}/pairs/*.parquet', filename = true, file_row_number = true))
        select row_id from chosen join pairs using (shard, row, uid) order by shard, row
    """
    found = [row[0] for row in duckdb.connect().execute(query).fetchall()]
    assert len(found) == chosen.num_rows
    return found


def oracle(dataset: Path, sql: str) -> list[str]:
    """row_ids by a query over `rows`: kept, one per uid, in the dataset's order (column `place`)."""
    query = f"""
        with all_rows as (select *, row_number() over (order by filename, file_row_number) as place
                          from read_parquet('{dataset}/pairs/*.parquet', filename = true, file_row_number = true)),
             rows as (select * from all_rows where status = 'ok'
                      qualify row_number() over (partition by uid order by place) = 1),
             answer as ({sql})
        select row_id from answer order by place
    """
    return [row[0] for row in duckdb.connect().execute(query).fetchall()]
