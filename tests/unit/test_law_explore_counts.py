"""Tests that the explorer counts what `select` would write, for filters, expressions and subsets of any kind."""

import shlex
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.main import get_command

from pairmill.jobs.cli.arguments import select_job
from pairmill.jobs.cli.main import app
from pairmill.jobs.cli.options import SelectOptions
from pairmill.jobs.explore import run_select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_subset
from pairmill.pipeline.explore.explorer import Explorer
from pairmill.pipeline.explore.gallery import command
from pairmill.pipeline.explore.labels import Labels
from pairmill.pipeline.explore.order import first_sorted, sort_keys
from pairmill.pipeline.explore.query import Query, clauses
from pairmill.pipeline.explore.start import first_of_each
from pairmill.pipeline.explore.summary import Column, unread
from pairmill.pipeline.explore.view import View
from pairmill.pipeline.select.expressions import Expression
from pairmill.schemas.errors import PairmillError
from tests.synthetic_dataset import write_dataset

ROWS = 2_000


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, ROWS, shard_rows=300)
    store = Store(str(folder))
    made = Explorer(store, run_select, Labels(store, "session"), tmp_path_factory.mktemp("cache"))
    base = made.select_job("base", "pairs", None, "width >= 300 and not (similarity < 0.2)")
    run_select(base, False)
    yield made
    made.close()


@pytest.fixture(scope="module")
def view(explorer: Explorer) -> View:
    assert explorer.shown
    return explorer.shown.view


def number(low: float, high: float) -> st.SearchStrategy[str]:
    exact = st.floats(low, high).map(repr)
    return exact | st.floats(low, high).map(lambda value: f"{value:.2f}") | st.integers(int(low), int(high)).map(str)


FILTERS: list[st.SearchStrategy[tuple[str, str]]] = [
    st.tuples(st.sampled_from(["min:similarity", "max:similarity"]), number(0, 0.5)),
    st.tuples(st.sampled_from(["min:width", "max:height"]), number(50, 1_100)),
    st.tuples(st.just("null:similarity"), st.just("1")),
    st.tuples(st.just("null:md5"), st.just("1")),
    st.tuples(st.just("is:status"), st.sampled_from(["ok", "similarity_too_low", "no 'such' \"status\"\\"])),
    st.tuples(st.just("is:kept"), st.sampled_from(["True", "False"])),
    st.tuples(
        st.sampled_from(["has:caption", "has:url", "has:sha256"]),
        st.sampled_from(["7", "PHOTO", "a: b #c", "a1", "'\\", "ß"]),
    ),
    st.tuples(
        st.just("where"),
        st.sampled_from(
            ["width / height < 1.5", "similarity > 0.2 or width < 300", "not contains(caption, '1')", "md5 is None"]
        ),
    ),
]
queries = st.builds(
    lambda filters, start: [*filters, start],
    st.lists(st.one_of(FILTERS), max_size=5),
    st.sampled_from([("rows", "kept"), ("rows", "pairs"), ("subset", "base")]),
)


@settings(max_examples=max(1, settings.default.max_examples // 4))
@given(queries)
def test_a_count_equals_the_number_of_rows_that_select_writes(
    explorer: Explorer, view: View, parameters: list[tuple[str, str]]
) -> None:
    query = Query.parse(parameters)
    base = read_subset(explorer.store, query.subset) if query.subset else None
    job = explorer.select_job("dry-run", query.rows, base, view.expression(query))
    assert view.count(query) == run_select(job, True).rows_out
    assert len(view.order(query)) == view.count(query)


@given(queries)
def test_the_displayed_command_selects_with_the_same_steps(
    explorer: Explorer, view: View, parameters: list[tuple[str, str]]
) -> None:
    query = Query.parse(parameters)
    base = read_subset(explorer.store, query.subset) if query.subset else None
    job = explorer.select_job("NAME", query.rows, base, view.expression(query))
    words = shlex.split(command(explorer, query, view.expression(query)))
    context = get_command(app).commands["select"].make_context("select", words[2:])  # type: ignore[attr-defined]
    parsed = select_job(SelectOptions.from_parameters({"job_file": None, **_renamed(context.params)}))
    assert (parsed.steps, parsed.rows, parsed.dataset) == (job.steps, job.rows, job.dataset)
    assert parsed.partial == job.partial


def _renamed(parameters: dict[str, object]) -> dict[str, object]:
    return {name: parameters[name] for name in parameters if name not in ("compare", "as_json")}


@given(queries)
def test_the_address_of_a_query_parses_to_the_same_query(view: View, parameters: list[tuple[str, str]]) -> None:
    query = Query.parse(parameters)
    again = Query.parse(parse_qsl(query.address, keep_blank_values=True))
    assert view.clauses(again) == view.clauses(query)
    assert (again.rows, again.subset) == (query.rows, query.subset)


@given(st.text(max_size=60), st.sampled_from(["is:status", "has:caption", "has:url"]))
def test_any_text_is_a_value_and_never_part_of_the_expression(view: View, text: str, name: str) -> None:
    query = Query.parse([(name, text)])
    if not text.strip() and name != "is:status":  # an empty text can be a choice
        assert view.clauses(query) == []
        return
    (clause,) = view.clauses(query)
    each = Expression(clause)
    assert each.columns == {name.partition(":")[2]}
    each.check(view.snapshot.schema, "boolean")


WORDS = st.text(st.sampled_from("aZéÉßẞıIİΣσςǅﬁ\u0301 'K"), min_size=1) | st.text(min_size=1)


@given(WORDS, st.data())
def test_a_caption_is_found_by_any_of_its_parts(caption: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(caption) - 1))
    part = caption[start : data.draw(st.integers(start + 1, len(caption)))]
    for clause in clauses(Query.parse([("has:word", part)]), {"word": unread("word", "text")}):  # none if it is blank
        assert Expression(clause).evaluate(pa.table({"word": [caption]})).to_pylist() == [True]


@given(st.from_regex(r"[+-]?([0-9]{1,4}(\.[0-9]{0,3})?|\.[0-9]{1,3})([eE][+-]?[0-9]{1,2})?", fullmatch=True))
def test_a_bound_keeps_the_rows_that_python_keeps(text: str) -> None:
    values = [float(text), -float("inf"), -1.0, 0.0, 7.0, 1e30]
    (clause,) = clauses(Query.parse([("min:x", text)]), {"x": Column("x", "number")})
    found = Expression(clause).evaluate(pa.table({"x": values}))
    assert found.to_pylist() == [value >= float(text) for value in values]


@pytest.mark.parametrize("chosen", [[""], [" "], ["", "x"], ["x"]])
def test_an_empty_text_can_be_chosen_like_any_other(chosen: list[str]) -> None:
    query = Query.parse([("is:kind", value) for value in chosen])
    (clause,) = clauses(
        Query.parse(parse_qsl(query.address, keep_blank_values=True)), {"kind": Column("kind", "choice")}
    )
    found = Expression(clause).evaluate(pa.table({"kind": ["", " ", "x", None]}))
    assert found.to_pylist() == ["" in chosen, " " in chosen, "x" in chosen, None]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([("min:width", "1; drop")], "width: '1; drop' is not a number"),
        ([("min:width", "nan")], "not a number"),
        ([("min:width", "٣")], "not a number"),
        ([("max:nothing", "1")], "there is no filter for a column 'nothing'"),
        ([("is:kept", "1")], "neither True nor False"),
        ([("rows", "all")], "neither kept nor pairs"),
        ([("page", "0")], "not a page number"),
        ([("order", "up")], "not best, worst, around or random"),
        ([("order", "around"), ("around", "x")], "not a number"),
        ([("sort", "caption")], "not a numeric column"),
        ([("where", "__import__('os')")], "not supported"),
        ([("where", "widht > 3")], "did you mean 'width'"),
        ([("subset", "nothing")], "has no subset 'nothing'"),
    ],
)
def test_a_mistake_is_reported_clearly(view: View, parameters: list[tuple[str, str]], message: str) -> None:
    def show() -> None:
        view.order(Query.parse(parameters))

    with pytest.raises(PairmillError, match=message.replace("'", ".")):
        show()


@pytest.mark.parametrize("order", ["best", "worst", "around", "random"])
def test_rows_are_in_order_with_missing_values_last(view: View, order: str) -> None:
    query = Query.parse([("order", order), ("around", "0.25"), ("rows", "pairs")])
    rows = view.order(query)
    values = np.asarray(view.cache.table(["similarity"])["similarity"].to_numpy(), np.float64)[rows]
    uids = [view.cache.table(["uid"])["uid"][int(row)].as_py() for row in rows[:50]]
    key: Callable[[np.ndarray], np.ndarray] = {  # type: ignore[type-arg]
        "best": np.negative, "worst": np.positive, "around": lambda v: np.abs(v - 0.25), "random": np.isnan,
    }[order]  # fmt: skip
    found = key(values[~np.isnan(values)])
    if order == "random":
        assert uids == sorted(uids)
    else:
        assert (np.diff(found) >= 0).all()
        assert np.isnan(values[len(found) :]).all()


@given(st.lists(st.integers(0, 9).map(float) | st.just(float("nan")), max_size=60), st.integers(1, 12))
def test_the_first_rows_equal_those_of_a_full_sort(values: list[float], size: int) -> None:
    keys = np.array(values, np.float64)
    whole = np.argsort(keys, kind="stable")
    found = first_sorted(keys, size)
    assert found.tolist() == whole[: len(found)].tolist()
    assert len(found) >= min(size, len(keys))


@given(st.lists(st.none() | st.integers(0, 3) | st.integers((1 << 60) - 3, (1 << 60) + 3), min_size=1))
def test_integers_and_decimals_are_sorted_exactly(values: list[int | None]) -> None:
    for kind in (pa.int64(), pa.uint64(), pa.decimal128(38, 10)):
        found = np.argsort(sort_keys(pa.chunked_array([values[:3], values[3:]], kind)), kind="stable").tolist()
        assert found == sorted(range(len(values)), key=lambda at: (values[at] is None, values[at] or 0, at))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=40))
def test_the_first_row_of_each_uid_is_kept(rows: list[tuple[int, int, bool]]) -> None:
    high, low = (np.array([row[i] for row in rows], np.uint64) for i in (0, 1))
    among = np.array([row[2] for row in rows], np.bool_)
    seen: set[tuple[int, int]] = set()
    expected = []
    for one, other, is_in in rows:
        expected.append(is_in and (one, other) not in seen)
        if is_in:
            seen.add((one, other))
    assert first_of_each(high, low, among).tolist() == expected
