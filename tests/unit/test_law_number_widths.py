"""Invariant of number widths: half floats and decimals of up to 64 bits, for which Arrow lacks many functions, behave
like the same numbers in a type for which it has them all."""

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from pairmill.jobs.select import select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_rows, read_subset
from pairmill.pipeline.explore.columns import ColumnCache
from pairmill.pipeline.explore.order import sort_keys
from pairmill.pipeline.explore.summary import describe
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.report.report import make_report
from pairmill.schemas.subset import SelectJob, Subset
from tests.synthetic_dataset import default_columns, write_dataset

ROWS = 120
NOW = datetime(2026, 1, 31, tzinfo=UTC)
NARROW = {"half": pa.float16(), "d32": pa.decimal32(7, 2), "d64": pa.decimal64(16, 2)}
WIDE = {"half": pa.float32(), "d32": pa.decimal128(7, 2), "d64": pa.decimal128(16, 2)}


def numbers(kind: pa.DataType, values: list[float | None]) -> pa.Array:
    """The values, which are multiples of 0.25, as numbers of a type."""
    if kind == pa.float16():
        return pa.array([None if value is None else np.float16(value) for value in values], kind)
    return pa.array(values, pa.float32()).cast(kind)


def own_columns(shard: int, first: int, count: int, seed: int) -> dict[str, pa.Array]:
    """Each column in its narrow and its wide type, with repeated values and nulls."""
    values = [None if row % 11 == 0 else row % 13 / 4 for row in range(first, first + count)]
    narrow = {name: numbers(kind, values) for name, kind in NARROW.items()}
    wide = {f"wide_{name}": numbers(kind, values) for name, kind in WIDE.items()}
    constant = {f"equal_{name}": numbers(kind, [0.25] * count) for name, kind in NARROW.items()}
    return {**default_columns(shard, first, count, seed), **narrow, **wide, **constant}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, ROWS, shard_rows=50, columns=own_columns)
    return folder


def made_by(dataset: Path, name: str, step: str) -> Subset:
    """The subset that one step selects. Subsets have equal names, so that only their steps differ."""
    shutil.rmtree(dataset / "subsets", ignore_errors=True)
    steps = [yaml.safe_load(step.format(name))]
    job = {"dataset": str(dataset), "name": "by", "rows": "pairs", "steps": steps}
    select(SelectJob.model_validate(job))
    return read_subset(Store(str(dataset)), "by")


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize(
    "step",
    [
        "where: {0} > 1 and {0} * 2 < 5",
        "top: {{by: {0}, fraction: 0.3}}",
        "dedup: {{by: {0}, best: {0}}}",
        "balance: {{by: {0}, curve: 3}}",
        "repeat: {{by: {0}, mean: 2}}",
    ],
)
def test_steps_select_the_same_rows(dataset: Path, name: str, step: str) -> None:
    store = Store(str(dataset))
    narrow, wide = (
        [table.to_pydict() for table in read_rows(store, made_by(dataset, each, step))]
        for each in (name, f"wide_{name}")
    )
    assert narrow == wide
    assert any(table["uid"] for table in narrow)


@pytest.mark.parametrize("name", NARROW)
def test_a_report_shows_the_same_duplicates(dataset: Path, name: str) -> None:
    groups = []
    for each in (name, f"wide_{name}"):
        made_by(dataset, each, "dedup: {{by: {0}}}")
        page = make_report(Store(str(dataset)), "by", now=NOW).html
        groups.append(re.findall(r"\d+ duplicates? of [\d:]+", page))
    assert groups[0] == groups[1] != []


def test_the_explorer_describes_and_sorts_columns(dataset: Path, tmp_path: Path) -> None:
    snapshot = Snapshot.of(Store(str(dataset)))
    table = ColumnCache(snapshot, tmp_path).table([*own_columns(0, 0, 1, 1)])
    for name in NARROW:
        narrow, wide = (describe("x", "number", table[each]) for each in (name, f"wide_{name}"))
        assert narrow == wide
        assert describe("x", "number", table[f"equal_{name}"]).only_value == "0.25"
        assert np.array_equal(sort_keys(table[name]), sort_keys(table[f"wide_{name}"]), equal_nan=True)
