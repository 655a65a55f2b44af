"""Invariant of numbers: `where`, `top`, `dedup` and `sample` give the same results as DuckDB, on generated tables.

The only intended differences are listed in docs/guides/select.md. The SQL that is generated here allows for them: a
comparison with NaN is null, `least` and `greatest` are null or NaN if one operand is, integers have at least 64 bits,
and arithmetic on floats is in double.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.dataset.chunks import Chunk, ShardFiles
from pairmill.pipeline.dataset.subset import NOT_DROPPED
from pairmill.pipeline.select.expression_errors import ExpressionError
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.step_error import StepError
from pairmill.pipeline.select.steps.open_step import open_step
from pairmill.pipeline.select.steps.run_steps import run_steps
from pairmill.pipeline.select.tasks import LocalTasks
from pairmill.schemas.select_steps import SelectStep

CASES = Path(__file__).parents[4] / "shared" / "data" / "cases"

INTEGERS = {f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)}
FLOATS = {"f16": pa.float16(), "f32": pa.float32(), "f64": pa.float64(), "g32": pa.float32(), "g64": pa.float64()}
DECIMALS = {"dec": pa.decimal128(10, 2), "fine": pa.decimal128(14, 6)}
NUMBERS = INTEGERS | FLOATS | DECIMALS
TEXTS = {
    "text": pa.string(),
    "large": pa.large_string(),
    "lang": pa.dictionary(pa.int32(), pa.string()),
}
RANKED = NUMBERS | {"wide": pa.decimal128(38, 10)}
TYPES = RANKED | TEXTS | {"flag": pa.bool_()}

WORDS = st.text("aAbBßİé\n .%_\\'\"🙂", max_size=4)


def _numbers(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """A strategy for values of a type, often including its extremes."""
    if pa.types.is_integer(kind):
        low, high = (0, 2**kind.bit_width - 1) if "u" in str(kind) else (-(2 ** (kind.bit_width - 1)),) * 2
        high = high if low == 0 else -low - 1
        near = st.sampled_from([low, low + 1, high - 1, high, 0, 1, min(high, 2**53 + 1), max(low, -1)])
        return st.one_of(near, st.integers(low, high), st.integers(max(low, -3), 3))
    if pa.types.is_decimal(kind):
        limit = 10 ** (kind.precision - kind.scale) - 1
        if kind == RANKED["wide"]:  # values that are equal as float64
            first = st.sampled_from([(1, *[0] * 36), (0,)])
            signs, last = st.integers(0, 1), st.integers(0, 3)
            return st.builds(lambda sign, start, end: Decimal((sign, (*start, end), -10)), signs, first, last)
        return st.one_of(st.sampled_from(["0.70", "-0.5", "3", "0"]).map(Decimal), st.decimals(-limit, limit, places=2))
    width = {pa.float16(): 16, pa.float32(): 32}.get(kind, 64)
    few = [0.7, 0.25, -0.0, 0.0, 1.0, 3.0, math.nan, math.inf, -math.inf, 2.0**24 + 1, 2.0**53, 2.0**63, 2.0**64]
    rounded = {16: np.float16, 32: np.float32, 64: np.float64}[width]
    with np.errstate(over="ignore"):
        usual = st.sampled_from([float(rounded(value)) for value in few])
    return st.one_of(usual, st.floats(width=width))


def _values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_boolean(kind):
        return st.booleans()
    return WORDS if kind in TEXTS.values() else _numbers(kind)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    if kind == pa.float16():
        values = [None if value is None else np.float16(value) for value in values]
    return pa.array(values, kind)


@st.composite
def tables(draw: st.DrawFn, names: Sequence[str], max_rows: int = 6) -> pa.Table:
    """A strategy for tables with these columns of TYPES."""
    rows = draw(st.integers(1, max_rows))
    lists = {name: st.lists(st.none() | _values(TYPES[name]), min_size=rows, max_size=rows) for name in names}
    return pa.table({name: _array(draw(values), TYPES[name]) for name, values in lists.items()})


@dataclass(frozen=True)
class Both:
    """The same expression in our grammar and in SQL."""

    ours: str
    sql: str
    is_float: bool = False
    is_half: bool = False
    """Whether the expression is just a float16 column."""
    literal: str | None = None
    """The decimal if the expression is just a literal."""


def _column(name: str) -> Both:
    kind = TYPES[name]
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return Both(name, f"{name}::bigint")
    return Both(name, name, bool(pa.types.is_floating(kind)), is_half=kind == pa.float16())


def _literals() -> st.SearchStrategy[Both]:
    fractions = st.tuples(st.integers(0, 99_999), st.integers(1, 6)).map(lambda pair: f"{pair[0]}.{pair[1]}")
    whole = st.sampled_from([2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64]) | st.integers(0, 300)
    usual = st.sampled_from(["0.7", "0.25", "0.1", "1.0", "3.5", "0.30", "16777217.0"])
    return st.one_of(usual, fractions, whole.map(str)).map(
        lambda text: Both(text, text, literal=text if "." in text else None)
    )


def _rounded(value: Both, other: Both) -> str:
    """The SQL of a value. A decimal literal that is compared with a float16 column is rounded to float16."""
    if not other.is_half or value.literal is None:
        return value.sql
    with np.errstate(over="ignore"):
        half = float(np.float16(float(value.literal)))
    return f"{half!r}::float" if math.isfinite(half) else value.sql


def _extended(inner: st.SearchStrategy[Both]) -> st.SearchStrategy[Both]:
    """A strategy for arithmetic on `inner`."""

    def binary(operator: str, left: Both, right: Both) -> Both:
        is_float = left.is_float or right.is_float or operator == "/"
        one, other = (f"{each.sql}::double" if each.is_float else each.sql for each in (left, right))
        sql = f"({one} {operator} {other})"
        return Both(f"({left.ours} {operator} {right.ours})", sql, is_float)

    def extreme(name: str, left: Both, right: Both) -> Both:
        nan = f" when {_is_nan(left)} or {_is_nan(right)} then 'nan'::float" if left.is_float or right.is_float else ""
        is_missing = f"{left.sql} is null or {right.sql} is null"
        sql = f"case when {is_missing} then null{nan} else {name}({left.sql}, {right.sql}) end"
        return Both(f"{name}({left.ours}, {right.ours})", f"({sql})", left.is_float or right.is_float)

    return st.one_of(
        st.builds(binary, st.sampled_from("+-*/"), inner, inner),
        st.builds(extreme, st.sampled_from(["least", "greatest"]), inner, inner),
        inner.map(lambda each: Both(f"(-{each.ours})", f"(-({each.sql}))", each.is_float)),
        inner.map(lambda each: Both(f"abs({each.ours})", f"abs({each.sql})", each.is_float)),
    )


def _is_nan(value: Both) -> str:
    """The SQL condition that a value is NaN. In SQL, NaN equals NaN."""
    return f"(({value.sql})::double is not distinct from 'nan'::double)" if value.is_float else "false"


number_expressions = st.recursive(st.sampled_from(sorted(NUMBERS)).map(_column) | _literals(), _extended, max_leaves=3)


def _compared(left: Both, links: Sequence[tuple[str, Both]]) -> Both:
    """A strategy for chains of comparisons such as `a < b <= c`."""
    ours, parts, operands = left.ours, [], [left, *(right for _, right in links)]
    for (operator, right), before in zip(links, operands, strict=False):
        ours += f" {operator} {right.ours}"
        sign = "=" if operator == "==" else operator
        test = f"({_rounded(before, right)}) {sign} ({_rounded(right, before)})"
        parts.append(f"(case when {_is_nan(before)} or {_is_nan(right)} then null else {test} end)")
    return Both(f"({ours})", f"({' and '.join(parts)})")


def _in_list(value: Both, items: Sequence[Both], negated: bool) -> Both:
    equal = " or ".join(_compared(value, [("==", item)]).sql for item in items)
    word, sql = ("not in", f"(not ({equal}))") if negated else ("in", f"({equal})")
    return Both(f"({value.ours} {word} [{', '.join(item.ours for item in items)}])", sql)


def _quoted(text: str) -> Both:
    return Both(repr(text), "'" + text.replace("'", "''") + "'")


def _text_tests() -> st.SearchStrategy[Both]:
    columns = st.sampled_from(sorted(TEXTS)).map(lambda name: Both(name, name))
    lower = columns.map(lambda each: Both(f"lower({each.ours})", f"lower({each.sql})"))
    values, literals = columns | lower, WORDS.map(_quoted)
    names = {"contains": "contains", "starts_with": "starts_with", "ends_with": "ends_with"}

    def call(name: str, value: Both, part: Both) -> Both:
        return Both(f"{name}({value.ours}, {part.ours})", f"{names[name]}({value.sql}, {part.sql})")

    regexes = st.sampled_from(["a.b", "^a", "b$", "[^a]", r"\\.", "(?i)AB", "", "a|é", r"\\w\\s"]).map(
        lambda regex: Both(f"'{regex}'", "'" + regex.replace("\\\\", "\\") + "'")
    )
    signs = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    return st.one_of(
        st.builds(call, st.sampled_from(sorted(names)), values, literals),
        st.builds(
            lambda value, regex: Both(
                f"matches({value.ours}, {regex.ours})", f"regexp_matches({value.sql}, {regex.sql})"
            ),
            values,
            regexes,
        ),
        st.builds(lambda left, sign, right: _compared(left, [(sign, right)]), values, signs, values | literals),
        st.builds(
            lambda value, items: _in_list(value, items, False), values, st.lists(literals, min_size=1, max_size=3)
        ),
        columns.map(
            lambda each: _compared(Both(f"length({each.ours})", f"length({each.sql})"), [(">", Both("1", "1"))])
        ),
    )


def _conditions() -> st.SearchStrategy[Both]:
    numbers, signs = number_expressions, st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    links = st.lists(st.tuples(signs, numbers), min_size=1, max_size=2)
    nulls = st.sampled_from(sorted(TYPES)).flatmap(
        lambda name: st.sampled_from(
            [Both(f"({name} {word} None)", f"({name} {word} null)") for word in ("is", "is not")]
        )
    )
    leaves = st.one_of(
        st.builds(_compared, numbers, links),
        st.builds(_in_list, numbers, st.lists(_literals(), min_size=1, max_size=3), st.booleans()),
        _text_tests(),
        nulls,
        st.just(Both("flag", "flag")),
    )

    def combined(inner: st.SearchStrategy[Both]) -> st.SearchStrategy[Both]:
        joined = st.builds(
            lambda word, one, other: Both(f"({one.ours} {word} {other.ours})", f"({one.sql} {word} {other.sql})"),
            st.sampled_from(["and", "or"]),
            inner,
            inner,
        )
        return joined | inner.map(lambda each: Both(f"(not {each.ours})", f"(not {each.sql})"))

    return st.recursive(leaves, combined, max_leaves=3)


def _duckdb_answer(table: pa.Table, sql: str) -> list[Any]:
    """The values of an SQL expression, in row order. DuckDB has no half floats and reads them as floats."""
    plain = pa.table(
        {
            name: column.cast(pa.float32() if column.type == pa.float16() else pa.string())
            if column.type == pa.float16() or name in TEXTS
            else column
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    ).append_column("row", pa.array(range(table.num_rows)))
    connection = _connection()
    connection.register("t", plain)
    return [row[0] for row in connection.execute(f"select {sql} from t order by row").fetchall()]


@cache
def _connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


OVERFLOWS = (duckdb.OutOfRangeException, duckdb.ConversionException, duckdb.BinderException)
"""DuckDB's errors if a result does not fit into a decimal or an integer. Our result can still be exact."""


@st.composite
def cases(draw: st.DrawFn) -> tuple[pa.Table, Both]:
    """A strategy for a condition and a table with its columns."""
    condition = draw(_conditions())
    names = Expression(condition.ours).columns
    assume(names)
    return draw(tables(sorted(names))), condition


@given(case=cases())
@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=settings.default.max_examples // 2)
def test_law_comparisons_where_keeps_the_rows_that_duckdb_keeps(case: tuple[pa.Table, Both]) -> None:
    table, condition = case
    expression = Expression(condition.ours)
    try:
        expected = _duckdb_answer(table, condition.sql)
    except OVERFLOWS:
        assume(False)
    try:
        expression.check(table.schema, "boolean")
        answer = expression.evaluate(table).to_pylist()
    except ExpressionError as error:
        assert "64-bit" in str(error)  # DuckDB does not evaluate operands that cannot affect the result
        assume(False)
    assert answer == expected


@dataclass(frozen=True)
class MemoryChunk:
    """A chunk whose rows are in memory, as one shard."""

    table: pa.Table
    first_row_index: int

    @property
    def num_rows(self) -> int:
        return int(self.table.num_rows)

    @property
    def shards(self) -> tuple[ShardFiles]:
        return (ShardFiles(0, 0, self.num_rows, "", ""),)

    def spans(self) -> Iterator[tuple[ShardFiles, slice]]:
        yield self.shards[0], slice(0, self.num_rows)

    def read(self, shard: ShardFiles, columns: frozenset[str]) -> pa.Table:
        return self.table.select(sorted(columns))

    read_rows = Chunk.read_rows


def _remaining(table: pa.Table, step: dict[str, object]) -> list[int]:
    """The rows that a step keeps when the table is read as two chunks."""
    uids = [f"{row * 0x9E3779B97F4A7C15 % 2**128:032x}" for row in range(table.num_rows)]
    table = table.append_column("uid", pa.array(uids, pa.string()))
    middle = table.num_rows // 2
    chunks: Any = [MemoryChunk(table.slice(0, middle), 0), MemoryChunk(table.slice(middle), middle)]
    selector = Selector.start(LocalTasks(), chunks)
    run_steps(selector, [open_step(SelectStep.model_validate(step), Files())])
    drop_step = np.concatenate(list(selector.tasks.get([each for each in selector.drop_step if each is not None])))
    return np.flatnonzero(drop_step == NOT_DROPPED).tolist()


def _score(name: str) -> str:
    """The SQL of a column, with null instead of NaN because we rank both equally low."""
    kind = TYPES[name]
    if not pa.types.is_floating(kind):
        return name
    return f"nullif({name}, 'nan'::{'double' if kind == pa.float64() else 'float'})"


@given(table=st.sampled_from(sorted(RANKED)).flatmap(lambda name: tables([name], max_rows=12)), data=st.data())
@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=settings.default.max_examples // 4)
def test_law_comparisons_top_keeps_the_rows_that_duckdb_puts_first(table: pa.Table, data: st.DataObject) -> None:
    name = table.column_names[0]
    share = data.draw(
        st.integers(1, 12).map(lambda n: {"count": n}) | st.sampled_from([{"fraction": 0.5}, {"fraction": 0.3}])
    )
    count = min(
        share.get("count") or _duckdb_answer(table, f"round({share['fraction']} * count(*) over ())::int")[0],
        table.num_rows,
    )
    if 0 < count < table.num_rows and not any(_duckdb_answer(table, f"{_score(name)} is not null")):
        with pytest.raises(StepError, match="null in all rows"):
            _remaining(table, {"top": {"by": name, **share}})
        return
    kept = _remaining(table, {"top": {"by": name, **share}})
    assert len(kept) == count
    ranked = sorted(_duckdb_answer(table, f"row_number() over (order by {_score(name)} desc nulls last)"))
    assert len(ranked) == table.num_rows
    places = _duckdb_answer(table, f"rank() over (order by {_score(name)} desc nulls last)")
    assert sorted(places[row] for row in kept) == sorted(places)[:count]


@given(
    table=st.tuples(st.sampled_from(sorted(TYPES)), st.sampled_from(sorted(RANKED))).flatmap(
        lambda names: tables(sorted(set(names)), max_rows=12).map(lambda table: (table, *names))
    ),
    with_best=st.booleans(),
)
@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=settings.default.max_examples // 4)
def test_law_comparisons_dedup_keeps_the_row_that_duckdb_puts_first_in_each_group(
    table: tuple[pa.Table, str, str], with_best: bool
) -> None:
    rows, by, best = table
    step = {"by": by, "best": best} if with_best else {"by": by}
    order = f"{_score(best)} desc nulls last, row" if with_best else "row"
    first = f"row_number() over (partition by {_score(by)} order by {order}) = 1 or {_score(by)} is null"
    expected = [row for row, is_first in enumerate(_duckdb_answer(rows, first)) if is_first]
    assert _remaining(rows, {"dedup": step}) == expected


@given(rows=st.integers(1, 60), fraction=st.floats(0.01, 1), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=settings.default.max_examples // 4)
def test_law_comparisons_a_sample_has_as_many_rows_as_duckdb_rounds_to(rows: int, fraction: float, seed: int) -> None:
    table = pa.table({"f32": pa.array(range(rows), pa.float32())})
    kept = _remaining(table, {"sample": {"fraction": fraction, "seed": seed}})
    assert len(kept) == _duckdb_answer(table, f"round({fraction!r}::double * {rows})::int")[0]
    smaller = _remaining(table, {"sample": {"fraction": fraction / 2, "seed": seed}})
    assert set(smaller) <= set(kept)


@pytest.mark.parametrize("text", ["int64 * int64", "-int64", "abs(int64)", "int64 - 1"])
def test_law_comparisons_an_integer_beyond_64_bits_is_an_error_as_in_duckdb(text: str) -> None:
    table = pa.table({"int64": pa.array([-(2**63)], pa.int64())})
    with pytest.raises(ExpressionError, match="exceeds the range of 64-bit integers"):
        Expression(text).evaluate(table)
    with pytest.raises(duckdb.Error):
        _duckdb_answer(table, text)


@pytest.mark.parametrize(
    ("condition", "sql"),
    [
        ("score32 >= 0.7", "score32 >= 0.7"),
        ("score32 * 2 >= 1.4", "score32::double * 2 >= 1.4"),
        ("1700000000 + score32 > 1700000000.5", "1700000000 + score32::double > 1700000000.5"),
        ("100000 * f16 - score32 / 3 > 0", "100000 * f16::double - score32::double / 3 > 0"),
        ("i8 * i8 > u8", "i8::int * i8 > u8"),
        ("u64 > i64", "u64 > i64"),
        ("u64 == 18446744073709551615", "u64 = 18446744073709551615"),
        ("u64 - i64 > 0", "u64::hugeint - i64 > 0"),
        ("not nanf > 0", "not isnan(nanf) and not nanf > 0"),
        ("nanf != 0.5", "not isnan(nanf) and nanf != 0.5"),
        ("nanf not in [0.5]", "not isnan(nanf) and nanf not in (0.5)"),
        ("nanf is not None", "nanf is not null"),
        ("lang == 'en' and starts_with(big, 'a')", "lang = 'en' and starts_with(big, 'a')"),
        ("big in ['a', 'b'] or contains(lang, 'e')", "big in ('a', 'b') or contains(lang, 'e')"),
        ("dec >= 0.7 and dec / 2 < 100", "dec >= 0.7 and dec / 2 < 100"),
        ("w * h > 1000 and w / h < 3", "w::bigint * h > 1000 and w / h < 3"),
        ("f16 > 0.5 and tags is not None", "f16 > 0.5 and tags is not null"),
    ],
)
def test_law_comparisons_where_agrees_with_duckdb_on_the_table_of_reported_types(condition: str, sql: str) -> None:
    table = pq.read_table(CASES / "select_numbers.parquet").drop_columns("image")
    expression = Expression(condition)
    expression.check(table.schema, "boolean")
    kept = [stays is True for stays in expression.evaluate(table).to_pylist()]
    assert kept == [stays is True for stays in _duckdb_answer(table, sql)]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_law_comparisons_nan_in_a_dictionary_column_is_not_a_duplicate_either(kind: pa.DataType) -> None:
    """Outputs of earlier versions contain dictionary columns."""
    numbers = _array([math.nan, 1.0, math.nan, None, 1.0, None], kind)
    indices = pa.array([0, 1, 0, 2, 1, 2], pa.int8())
    coded = pa.DictionaryArray.from_arrays(indices, numbers.take(pa.array([0, 1, 3])))
    for column in (numbers, coded):
        assert _remaining(pa.table({"x": column}), {"dedup": {"by": "x"}}) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize(("name", "other"), [("µm", "μm"), ("ﬁ", "fi"), ("\u212b", "\u00c5"), ("ªb", "ab")])
def test_law_comparisons_a_column_name_is_not_normalized(name: str, other: str) -> None:
    """Python normalizes names to NFKC, but DuckDB does not: µm (U+00B5) and μm (U+03BC) are two columns."""
    table = pa.table({name: [1, 2, 3], other: [3, 2, 1], "uid": ["a", "b", "c"]})
    for written in (name, other):
        if not written.isidentifier():
            continue
        expression = Expression(f"{written} > 1 and {written} * 2 > {written}")
        expression.check(table.schema, "boolean")
        (expected,) = zip(*duckdb.sql(f'select "{written}" > 1 from "table"').fetchall(), strict=True)
        assert expression.evaluate(table).to_pylist() == list(expected)
