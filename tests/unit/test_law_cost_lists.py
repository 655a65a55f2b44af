"""Invariant: reading a list or table takes bounded memory, however much data a few bytes encode. A row that is too
large becomes `row_malformed` without affecting any other row.

Oracles: the peak memory of a process, the lengths of the values in Python, and pyarrow for rows with lists.
"""

import ctypes
import gzip
import io
import multiprocessing
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.files import MALFORMED_COLUMN
from pairmill.pipeline.source.page_levels import longest_entry, longest_row
from pairmill.pipeline.source.pages import DICTIONARY, Page, pages_of
from pairmill.pipeline.source.plan import make_plan
from pairmill.pipeline.source.row_budget import RowBudget, row_sizes
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import shards_from_table
from pairmill.schemas.record import JobRecord

MIB = 1 << 20
SCALE = 8 if settings.default.max_examples > 100 else 256
"""The factor by which the limits are smaller than in a real run."""
BUDGET = (1 << 30) // SCALE
LIMITS = {
    "cursor._BATCH_BYTES": (256 << 20) // SCALE,
    "cursor._MAX_SHARD_BYTES": BUDGET,
    "cursor._MAX_PICTURE_SHARD_BYTES": BUDGET,
    "shard_ends._SMALL_SHARD_BYTES": (128 << 20) // SCALE,
    "decoded_sizes._IGNORED_BYTES": (128 << 20) // SCALE,
    "row_group_cost._BATCH_BYTES": (256 << 20) // SCALE,
    "row_group_cost.MAX_ROW_BYTES": BUDGET,
    "row_group_cost.MAX_PAGE_BYTES": (64 << 20) // SCALE,
    "convert._BATCH_BYTES": (32 << 20) // SCALE,
    "text_file.MAX_RECORD_BYTES": (16 << 20) // SCALE,
}
ROWS = 4_096
HUGE = 16 * BUDGET
"""The size to which each bomb unpacks."""
SLACK_BYTES = 16 << 20
"""Memory for modules that are imported during the measurement, and for buffers of a fixed size."""

Bomb = Callable[[Path], None]


def _table(values: Callable[[], pa.Array], **options: Any) -> Bomb:
    """A bomb that is a table of URLs, captions and a column of these values."""

    def write(path: Path) -> None:
        big = values()
        urls = [f"http://a/{row}" for row in range(len(big))]
        table = pa.table({"url": urls, "caption": ["a"] * len(big), "big": big})
        pq.write_table(table, path, compression="zstd", write_statistics=False, **options)  # Arrow would compare them

    return write


def _repeated(text: Any, rows: int = ROWS) -> pa.Array:
    """The same value in all rows, as a dictionary array, so that writing it takes little memory too."""
    return pa.DictionaryArray.from_arrays(pa.repeat(0, rows).cast(pa.int32()), pa.array([text]))


def _runs(rows: int) -> pa.Array:
    """Lists of one repeated number."""
    each = HUGE // 8 // rows
    return pa.ListArray.from_arrays(pa.array(range(0, each * rows + 1, each), pa.int32()), pa.repeat(7, each * rows))


def _shared_prefixes(path: Path) -> None:
    half = ["a" * (HUGE // 1_000)] * 1_000
    table = pa.table({"url": [f"http://a/{row}" for row in range(1_000)], "caption": ["a"] * 1_000, "big": half})
    encoding = {"big": "DELTA_BYTE_ARRAY"}
    pq.write_table(table, path, compression="zstd", use_dictionary=False, column_encoding=encoding)


def _gzipped(head: bytes, body: bytes, tail: bytes) -> Bomb:
    def write(path: Path) -> None:
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(head)
            for _ in range(HUGE // 2 // len(body)):
                file.write(body)
            file.write(tail)

    return write


BLOCK = b"a" * (1 << 18)
LONG_LINE = b"a" * (LIMITS["text_file.MAX_RECORD_BYTES"] - 100)
BOMBS: dict[str, tuple[str, Bomb]] = {
    "a dictionary": ("a.parquet", _table(lambda: _repeated("a" * (HUGE // ROWS)), store_schema=False)),
    "an Arrow dictionary": ("a.parquet", _table(lambda: _repeated("a" * (HUGE // ROWS)))),
    "a dictionary of bytes": ("a.parquet", _table(lambda: _repeated(b"a" * (HUGE // ROWS)), store_schema=False)),
    "one long caption repeated": (
        "a.parquet",
        lambda path: pq.write_table(
            pa.table({"url": _repeated("http://a"), "caption": _repeated("a" * (HUGE // ROWS))}),
            path,
            compression="zstd",
            store_schema=False,
        ),
    ),
    "shared prefixes": ("a.parquet", _shared_prefixes),
    "a run in one list": ("a.parquet", _table(lambda: _runs(1))),
    "runs in lists": ("a.parquet", _table(lambda: _runs(64))),
    "a list of long strings": ("a.parquet", _table(lambda: pa.array([["a" * (HUGE // 512)] * 512]))),
    "a page": ("a.parquet", _table(lambda: pa.array(["a" * (HUGE // 4)] * 4), use_dictionary=False)),
    "a dictionary page": ("a.parquet", _table(lambda: pa.array(["a" * HUGE]), dictionary_pagesize_limit=1 << 30)),
    "CSV without a line end": ("a.csv.gz", _gzipped(b"url,caption\nhttp://a,", BLOCK, b"")),
    "CSV with a quote": ("a.csv.gz", _gzipped(b'url,caption\nhttp://a,"', BLOCK + b"\n", b"")),
    "CSV with long lines": ("a.csv.gz", _gzipped(b"url,caption\n", b"http://a," + LONG_LINE + b"\n", b"")),
    "JSON lines without a line end": ("a.jsonl.gz", _gzipped(b'{"url": "u"}\n{"url": "', BLOCK, b'"}')),
    "JSON with one long element": ("a.json.gz", _gzipped(b'[{"url": "u"}, {"url": "', BLOCK, b'"}]')),
    "JSON lines with long values": (
        "a.jsonl.gz",
        _gzipped(b"", b'{"url": "u", "caption": "c", "big": "' + LONG_LINE[100:] + b'"}\n', b""),
    ),
    "a list of URLs without a line end": ("a.txt.gz", _gzipped(b"http://a\nhttp://", BLOCK, b"")),
}


WITHOUT_LOSS = {
    *("a dictionary", "an Arrow dictionary", "a dictionary of bytes", "one long caption repeated", "runs in lists")
}
"""Bombs whose rows fit into shards of their own."""


def measure(name: str) -> tuple[int, int, list[str]]:
    """(increase in peak memory, number of rows, problems) from planning and reading a bomb."""
    file_name, write = BOMBS[name]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(_limited()))
        (folder / "in").mkdir()
        write(folder / "in" / file_name)
        job = BuildJob.model_validate({"source": {"paths": [str(folder / "in")]}, "output": str(folder / "out")})
        store = Store(job.output)
        pa.default_memory_pool().release_unused()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before, num_rows, problems = _peak_bytes(), 0, []
        try:
            plan = make_plan(JobRecord(job, "job"), store)
            reader = ShardReader(store, plan.mapping)
            for shard in shards_from_table(plan.shards):
                table = reader.read(shard)
                num_rows += table.num_rows
                problems += [detail for detail in table["status_detail"].to_pylist() if detail]
            reader.close()
        except PairmillError as error:
            problems.append(str(error))
        return _peak_bytes() - before, num_rows, problems


@contextmanager
def _limited(limits: Mapping[str, int] = LIMITS) -> Iterator[str]:
    """A temporary folder, while these limits hold."""
    with ExitStack() as stack:
        for limit, value in limits.items():
            stack.enter_context(patch(f"pairmill.pipeline.source.{limit}", value))
        yield stack.enter_context(tempfile.TemporaryDirectory())


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.fixture(scope="module")
def child() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", BOMBS)
def test_reading_a_list_takes_bounded_memory(name: str, child: ProcessPoolExecutor) -> None:
    peak, num_rows, problems = child.submit(measure, name).result(120)
    assert bool(problems) != (name in WITHOUT_LOSS)
    assert peak < 10 * BUDGET + SLACK_BYTES, (name, peak // MIB, num_rows, problems[:2])


SMALL_LIMITS = {
    "cursor._MAX_SHARD_BYTES": 100_000,
    "cursor._MAX_PICTURE_SHARD_BYTES": 100_000,
    "shard_ends._SMALL_SHARD_BYTES": 0,
    "decoded_sizes._IGNORED_BYTES": 0,
}
NESTED = {
    "image": lambda value: value,
    "struct": lambda value: {"image": value},
    "list": lambda value: [value, value] if value else [],
}


def _problems_of_shards(table: pa.Table, write: Callable[[pa.Table, Path], None]) -> tuple[int, list[str | None]]:
    """(number of shards, `status_detail` of each row) after planning and reading a table."""
    with _limited(SMALL_LIMITS) as folder:
        path, out = Path(folder, "a.parquet"), str(Path(folder, "out"))
        write(table, path)
        store = Store(out)
        plan = make_plan(
            JobRecord(BuildJob.model_validate({"source": {"paths": [str(path)]}, "output": out}), ""), store
        )
        reader, problems = ShardReader(store, plan.mapping), []
        for shard in shards_from_table(plan.shards):
            problems += reader.read(shard)["status_detail"].to_pylist()
        reader.close()
        return plan.num_shards, problems


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("is_text", [False, True])
@pytest.mark.parametrize("writer", ["pyarrow", "polars"])
def test_no_row_is_lost_because_others_repeat_a_long_value(kind: str, is_text: bool, writer: str) -> None:
    entries = [("é" if is_text else b"\xff\xd8") * 2_500 + (str(n) if is_text else bytes([n])) for n in range(8)]
    big = [NESTED[kind](entries[row // 25]) for row in range(200)]
    table = pa.table({"url": [f"http://a/{row}" for row in range(200)], "big": big})
    if writer == "polars":
        num_shards, problems = _problems_of_shards(table, lambda rows, path: pl.from_arrow(rows).write_parquet(path))
    else:
        num_shards, problems = _problems_of_shards(table, pq.write_table)
    assert problems == [None] * 200
    assert 10 <= num_shards <= 50


@given(
    rows=st.lists(st.none() | st.integers(0, 9), min_size=1, max_size=80),
    scale=st.sampled_from([1, 100, 1_000]),
    kind=st.sampled_from(["image", "struct"]),
    options=st.fixed_dictionaries(
        {
            "data_page_version": st.sampled_from(["1.0", "2.0"]),
            "compression": st.sampled_from(["none", "zstd"]),
            "dictionary_pagesize_limit": st.sampled_from([1_000, 20_000, 1 << 20]),
            "write_batch_size": st.integers(1, 20),
            "data_page_size": st.sampled_from([2, 1 << 20]),
            "row_group_size": st.sampled_from([7, 1_000]),
        }
    ),
)
def test_no_row_is_lost_in_a_shard_of_rows_of_any_sizes(
    rows: list[int | None], scale: int, kind: str, options: Mapping[str, Any]
) -> None:
    values = [None if row is None else b"\xff" * (row * scale + 1) for row in rows]
    urls = [f"http://a/{row}" for row in range(len(rows))]
    table = pa.table({"url": urls, "big": [NESTED[kind](value) for value in values]})
    with patch("pairmill.pipeline.source.decoded_sizes._LONG_VALUE", 0):
        _, problems = _problems_of_shards(table, lambda rows, path: pq.write_table(rows, path, **options))
    assert problems == [None] * len(rows)


LEAVES = st.none() | st.text("aé🙂", max_size=5)
ARRAYS = st.one_of(
    st.lists(LEAVES, max_size=9).map(pa.array),
    *(st.lists(LEAVES, max_size=9).map(lambda v, k=k: pa.array(v, k)) for k in (pa.string_view(), pa.large_string())),
    st.lists(LEAVES, max_size=9).map(lambda values: pa.array(values, pa.string()).dictionary_encode()),
    st.lists(st.none() | st.lists(LEAVES, max_size=4), max_size=9).map(lambda v: pa.array(v, pa.list_(pa.string()))),
    st.lists(st.none() | st.lists(LEAVES, max_size=4), max_size=9).map(
        lambda values: pa.array(values, pa.large_list_view(pa.string()))
    ),
    st.lists(st.none() | st.lists(st.none() | st.lists(LEAVES, max_size=2), max_size=3), max_size=9).map(
        lambda values: pa.array(values, pa.list_(pa.list_(pa.string())))
    ),
    st.lists(st.none() | st.lists(st.tuples(st.text(max_size=2), LEAVES), max_size=3), max_size=9).map(
        lambda values: pa.array(values, pa.map_(pa.string(), pa.string()))
    ),
    st.lists(st.none() | st.fixed_dictionaries({"a": LEAVES, "b": LEAVES}), max_size=9).map(
        lambda values: pa.array(values, pa.struct({"a": pa.string(), "b": pa.string()}))
    ),
)


def _bytes_in(value: Any) -> int:
    """Bytes of the text in a value."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_bytes_in, value)) if isinstance(value, (list, tuple)) else 0


@given(ARRAYS, st.integers(0, 3))
def test_the_size_of_a_row_is_that_of_its_values(values: pa.Array, start: int) -> None:
    values = values.slice(start)
    assert row_sizes(pa.record_batch({"a": values})).tolist() == [_bytes_in(value) for value in values.to_pylist()]


@given(ARRAYS, st.integers(0, 40), st.data())
def test_rows_that_fit_are_kept_and_others_become_null(values: pa.Array, max_bytes: int, data: st.DataObject) -> None:
    batch = pa.record_batch({"a": values})
    budget, sizes = RowBudget(len(values), max_bytes), [_bytes_in(value) for value in values.to_pylist()]
    cut = data.draw(st.integers(0, len(values)))
    pieces = [budget.within(batch.slice(0, cut)), budget.within(batch.slice(cut))]
    found = budget.noted(pa.Table.from_batches(pieces))
    problems = found[MALFORMED_COLUMN].to_pylist() if MALFORMED_COLUMN in found.column_names else [None] * len(values)
    kept = [row for row, problem in enumerate(problems) if problem is None]
    assert sum(sizes[row] for row in kept) <= max_bytes
    for row, value in enumerate(values.to_pylist()):
        assert found["a"][row].as_py() == (value if row in kept else None)
        if sizes[row] <= max_bytes // 2 // len(values):
            assert row in kept


@given(
    st.lists(st.none() | st.lists(st.integers(0, 40).map("a".__mul__), max_size=20), min_size=1, max_size=40),
    st.sampled_from(["1.0", "2.0"]),
    st.sampled_from(["none", "snappy", "zstd", "gzip", "brotli", "lz4"]),
    st.booleans(),
)
def test_the_longest_row_and_text_of_a_page_are_found_without_decoding_its_values(
    rows: list[list[str] | None], version: str, codec: str, is_dictionary: bool
) -> None:
    file = io.BytesIO()
    options = {"data_page_version": version, "compression": codec, "use_dictionary": is_dictionary}
    lists = pa.array(rows, pa.list_(pa.string()))
    pq.write_table(pa.table({"a": lists}), file, data_page_size=50, write_batch_size=3, **options)
    parquet = pq.ParquetFile(file)
    chunk = parquet.metadata.row_group(0).column(0)
    pages = list(pages_of(file, chunk))
    data = [page for page in pages if page.is_data]
    lengths = [len(row or [None]) or 1 for row in rows]  # a null or empty list also counts as one value of the page
    assert sum(page.num_values for page in data) == sum(lengths)
    assert longest_row(file, data, chunk.compression, 1) == max(lengths)
    for page in pages:
        if page.kind == DICTIONARY:
            longest = max((len(text) for row in rows for text in row or []), default=0)
            assert longest_entry(file, page, chunk.compression) == longest


@pytest.mark.parametrize("block_bytes", [1, 7, 1_000])
def test_the_longest_text_of_a_page_that_hadoop_packed_with_lz4_is_found(block_bytes: int) -> None:
    texts = [b"a", b"b" * 90, b""]
    plain = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    pieces = [plain[start : start + block_bytes] for start in range(0, len(plain), block_bytes)]
    packed = [pa.compress(piece, codec="lz4_raw", asbytes=True) for piece in pieces]
    body = b"".join(
        len(piece).to_bytes(4) + len(block).to_bytes(4) + block for piece, block in zip(pieces, packed, strict=True)
    )
    page = Page(DICTIONARY, 0, len(body), len(plain), len(texts), 0)
    assert longest_entry(io.BytesIO(body), page, "LZ4") == 90
