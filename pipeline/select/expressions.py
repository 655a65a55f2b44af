"""Evaluates expressions that users write over columns, such as `similarity >= 0.28 and width / height < 3`.

The grammar is a subset of Python's; the text is parsed, never executed. Nulls follow SQL: a comparison with null is
null, and a row stays only if the whole expression is true. `comparisons.py` does the arithmetic and compares numbers,
`times.py` compares times.
"""

import ast
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.select import comparisons, times
from pairmill.pipeline.select.comparisons import Value
from pairmill.pipeline.select.expression_errors import (
    ExpressionError,
    at_node,
    kind_of,
    mismatch,
    misspelt,
    no_column,
    of_syntax,
    pointing,
)

MAX_CHARS = 10_000
_MAX_DEPTH = 100
_MAX_RE2_CHARS = 100

_COMPARE: dict[type[ast.cmpop], Callable[[Value, Value], Value]] = {
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: comparisons.add,
    ast.Sub: comparisons.subtract,
    ast.Mult: comparisons.multiply,
    ast.Div: comparisons.divide,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "length": pc.utf8_length,
    "lower": pc.utf8_lower,
    "contains": lambda text, part: _contains(text, _text(part)),
    "starts_with": lambda text, part: pc.starts_with(text, _text(part)),
    "ends_with": lambda text, part: pc.ends_with(text, _text(part)),
    "matches": lambda text, regex: _matches(text, _text(regex)),
    "least": comparisons.least,
    "greatest": comparisons.greatest,
    "abs": comparisons.absolute,
    "clip": comparisons.clip,
}
_OF_TEXT = ("length", "lower")
"""Functions whose only argument is text."""
_NUMBER, _TEXT, _BOOLEAN = pa.int64(), pa.string(), pa.bool_()


@dataclass(frozen=True)
class Expression:
    """An expression over columns, as the user wrote it. Call `check` once before reading any data."""

    text: str

    @cached_property
    def columns(self) -> frozenset[str]:
        """Names of the columns that the expression uses. Raises ExpressionError."""
        called = {node.func for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        nodes = [node for node in ast.walk(self._tree) if node not in called]
        return frozenset(name for node in nodes if (name := column_name(node)) is not None)

    def check(self, schema: pa.Schema, expected: Literal["boolean", "number"]) -> None:
        """Evaluate it on zero rows. Raises ExpressionError if a column is unknown or the types do not match."""
        for node in ast.walk(self._tree):
            name = column_name(node)
            if name in self.columns and name not in schema.names:
                raise at_node(self._stripped, node, no_column(schema, name))
        value = self.evaluate(schema.empty_table().select(sorted(self.columns)))
        if not self.columns:
            raise ExpressionError(f"{self.text!r} uses no column; name one, such as `width` in `width / 1000`")
        if pa.types.is_null(value.type) and expected == "number":
            raise ExpressionError(f"{self.text!r} is null in all rows; use another column")
        if expected == "boolean" and not (pa.types.is_boolean(value.type) or pa.types.is_null(value.type)):
            raise ExpressionError(f"{self.text!r} is {value.type}, not true or false")
        if expected == "number" and not comparisons.is_number(value.type):
            raise ExpressionError(f"{self.text!r} is {value.type}, not a number")

    def evaluate(self, table: pa.Table) -> pa.ChunkedArray | pa.Array:
        """One value per row of the table; nulls follow SQL. Raises ExpressionError."""
        value = self._value(self._tree, table)
        return pa.repeat(value, table.num_rows) if isinstance(value, pa.Scalar) else value

    @property
    def _stripped(self) -> str:
        """The text to which positions in the tree refer."""
        return self.text.strip()

    @cached_property
    def _tree(self) -> ast.expr:
        if len(self.text) > MAX_CHARS:
            raise ExpressionError(f"expression longer than {MAX_CHARS:,} characters: {self.text[:60]!r} ...")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings about "\\d" and the like in regular expressions
                tree = ast.parse(self._stripped, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise of_syntax(self._stripped, error) from None
        if _depth(tree) > _MAX_DEPTH:
            raise ExpressionError(f"{self.text[:60]!r} ... is nested too deeply")
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                node.id = self._source(node)  # Python normalizes names (NFKC), but µm and μm may be two columns
        return tree

    def _value(self, node: ast.expr, table: pa.Table) -> Value:
        """Evaluate a node. Raises an ExpressionError that points at the innermost node that cannot be evaluated."""
        try:
            return self._evaluate(node, table)
        except (pa.ArrowException, TypeError, OverflowError, UnicodeEncodeError) as error:
            raise at_node(self._stripped, node, self._words(node, error, table)) from error

    def _evaluate(self, node: ast.expr, table: pa.Table) -> Value:
        if (name := column_name(node)) is not None:
            return _plain(table[name])
        match node:
            case ast.Constant(value=bool() | str() as value):
                return pa.scalar(value)
            case ast.Constant(value=int() as value):
                return comparisons.integer_literal(value)
            case ast.Constant(value=float()):
                return comparisons.decimal_literal(self._source(node))
            case ast.BoolOp():
                combine = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
                operands = (self._values([operand], table, _BOOLEAN) for operand in node.values)
                return reduce(combine, (operand for (operand,) in operands))
            case ast.UnaryOp(op=ast.Not()):
                return pc.invert(*self._values([node.operand], table, _BOOLEAN))
            case ast.UnaryOp(op=ast.USub()):
                return comparisons.negate(*self._values([node.operand], table))
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return _ARITHMETIC[type(node.op)](*self._values([node.left, node.right], table))
            case ast.Compare():
                return self._comparison(node, table)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*self._values(node.args, table, _TEXT if name in _OF_TEXT else _NUMBER))
            case _:
                raise self._unsupported_error(node)

    def _values(self, nodes: Sequence[ast.expr], table: pa.Table, kind: pa.DataType = _NUMBER) -> list[Value]:
        """The values of operands. `kind`: the type of a column of the type null if no operand has another type."""
        return comparisons.with_type([self._value(node, table) for node in nodes], kind)

    def _comparison(self, node: ast.Compare, table: pa.Table) -> Value:
        """Evaluate a chain of comparisons: `a < b < c` means `a < b and b < c`."""
        operands = [node.left, *node.comparators]
        links = [
            self._link(left, operator, right, table)
            for left, operator, right in zip(operands, node.ops, node.comparators, strict=False)
        ]
        return reduce(pc.and_kleene, links)

    def _link(self, left: ast.expr, operator: ast.cmpop, right: ast.expr, table: pa.Table) -> Value:
        """Evaluate one comparison of two operands."""
        match operator, right:
            case ast.Is(), ast.Constant(value=None):
                return pc.is_null(self._value(left, table))
            case ast.IsNot(), ast.Constant(value=None):
                return pc.is_valid(self._value(left, table))
            case ast.In(), ast.List(elts=items) | ast.Tuple(elts=items):
                return self._is_in(left, items, table)
            case ast.NotIn(), ast.List(elts=items) | ast.Tuple(elts=items):
                return pc.invert(self._is_in(left, items, table))
        if type(operator) not in _COMPARE:
            raise self._unsupported_error(right)
        if _is_null(left) or _is_null(right):
            node = right if _is_null(right) else left
            raise at_node(self._stripped, node, "to compare with null, write `is None` or `is not None`")
        return _compare(_COMPARE[type(operator)], *self._comparable(left, right, table))

    def _is_in(self, value: ast.expr, items: Sequence[ast.expr], table: pa.Table) -> Value:
        """Whether each value is among the items; null if the value is null, as in SQL."""
        if not items:
            raise at_node(self._stripped, value, "the list after `in` is empty; add at least one value")
        return reduce(pc.or_kleene, (_compare(pc.equal, *self._comparable(value, item, table)) for item in items))

    def _comparable(self, left: ast.expr, right: ast.expr, table: pa.Table) -> tuple[Value, Value]:
        """The operands as values of one kind. Users write times and durations as text."""
        one, other = times.with_parsed_texts(self._values([left, right], table))
        kinds = kind_of(one), kind_of(other)
        if kinds[0] != kinds[1]:
            raise mismatch(self._stripped, right, (self._source(left), self._source(right)), kinds)
        return one, other

    def _source(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._stripped, node) or type(node).__name__

    def _unsupported_error(self, node: ast.expr) -> ExpressionError:
        if found := misspelt(self._stripped):
            start, end, meant = found
            return pointing(self._stripped, start, end, f"use {meant!r} instead of {self._stripped[start:end]!r}")
        return at_node(self._stripped, node, f"{self._source(node)!r} is not supported; {_grammar()}")

    def _words(self, node: ast.expr, error: Exception, table: pa.Table) -> str:
        """Reword an Arrow error, which names kernels and types, in terms of the user's columns and operators."""
        if str(error) == "overflow":
            return f"{self._source(node)!r} exceeds the range of 64-bit integers in some row"
        operands = [each for each in ast.iter_child_nodes(node) if isinstance(each, ast.expr)]
        if isinstance(node, ast.Call):
            operands = node.args
        if isinstance(error, times.TimeTextError):
            columns = [each for each in operands if column_name(each) is not None]
            kinds = [f"{self._source(each)} is {kind_of(self._value(each, table))}, but " for each in columns]
            return f"{''.join(kinds[:1])}{error}"
        if not isinstance(error, pa.ArrowNotImplementedError):
            return str(error).partition("\n")[0]
        kinds = [f"{self._source(each)} is {kind_of(self._value(each, table))}" for each in operands]
        return f"{self._source(node)!r} cannot be computed: {', and '.join(kinds)}"


def column_name(node: ast.AST) -> str | None:
    """The name in `width` or `col("a name with spaces")`; None for any other node."""
    match node:
        case (
            ast.Name(id=name) | ast.Call(func=ast.Name(id="col"), args=[ast.Constant(value=str() as name)], keywords=[])
        ):
            return name
    return None


def named_column(text: str) -> str:
    """The column for `col('host')`, as in an expression; any other text is the name itself."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text
    return column_name(node) or text if isinstance(node, ast.Call) else text


def _contains(text: Value, part: str) -> Value:
    """Whether each text contains `part`.

    RE2 finds a few letters in half the time of Arrow's own search, which is faster for a single letter. The group keeps
    Arrow from noticing that the regular expression is plain text; otherwise it would use its own search.
    """
    if 1 < len(part) <= _MAX_RE2_CHARS:
        return pc.match_substring_regex(text, f"(?:{re.escape(part)})")
    return pc.match_substring(text, part)


def _matches(text: Value, regex: str) -> Value:
    """Whether each text contains a match. RE2 matches any regular expression in linear time."""
    pc.match_substring_regex(pa.array([""]), regex)  # fails for an invalid regular expression even with zero rows
    return pc.match_substring_regex(text, regex)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The plain values of a dictionary or a view, which Arrow's functions do not accept, and times in UTC."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    return times.plain(column)


def _compare(function: Callable[[Value, Value], Value], left: Value, right: Value) -> Value:
    if comparisons.is_number(left.type):
        return comparisons.compare(function, left, right)
    if pa.types.is_temporal(left.type):
        return times.compare(function, left, right)
    return function(left, right)


def _text(value: Value) -> str:
    if not isinstance(value, pa.Scalar) or not pa.types.is_string(value.type):
        raise TypeError("the second argument must be text in quotation marks")
    return str(value.as_py())


def _is_null(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _depth(tree: ast.AST) -> int:
    deepest, level = 0, [tree]
    while level:
        deepest, level = deepest + 1, [child for node in level for child in ast.iter_child_nodes(node)]
    return deepest


def _grammar() -> str:
    return (
        "expressions consist of columns, col('any name'), numbers, 'text', + - * /, < <= > >= == !=, in [..], is None, "
        f"and, or, not, and {', '.join(sorted(_FUNCTIONS))}"
    )
