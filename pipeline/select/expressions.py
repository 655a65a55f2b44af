"""Expressions over columns, as users write them: `similarity >= 0.28 and width / height < 3`.

The grammar is a subset of Python's; the text is parsed, never executed. Nulls follow SQL: a comparison with null is
null, and a row stays only if the whole expression is true.
"""

import ast
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.schemas.errors import PairmillError

MAX_CHARS = 10_000
_MAX_DEPTH = 100

Value: TypeAlias = Any
"""A pyarrow Array, ChunkedArray or Scalar."""

_COMPARE: dict[type[ast.cmpop], Callable[[Value, Value], Value]] = {
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: pc.add_checked,
    ast.Sub: pc.subtract_checked,
    ast.Mult: pc.multiply_checked,
    ast.Div: lambda left, right: pc.divide(_as_float(left), _as_float(right)),
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "length": pc.utf8_length,
    "lower": pc.utf8_lower,
    "contains": lambda text, part: pc.match_substring(text, _text(part)),
    "starts_with": lambda text, part: pc.starts_with(text, _text(part)),
    "ends_with": lambda text, part: pc.ends_with(text, _text(part)),
    "matches": lambda text, regex: _matches(text, _text(regex)),
    "least": lambda *values: pc.min_element_wise(*values, skip_nulls=False),
    "greatest": lambda *values: pc.max_element_wise(*values, skip_nulls=False),
    "abs": pc.abs,
}


class ExpressionError(PairmillError, ValueError):
    """The expression cannot be parsed or does not fit the columns; the message quotes it."""


@dataclass(frozen=True)
class Expression:
    """`text` comes from the user. Call `check` once, before any data is read."""

    text: str

    @cached_property
    def columns(self) -> frozenset[str]:
        """Names of the columns in it. Raises ExpressionError."""
        called = {node.func for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        nodes = [node for node in ast.walk(self._tree) if node not in called]
        return frozenset(name for node in nodes if (name := _column(node)) is not None)

    def check(self, schema: pa.Schema, expected: Literal["boolean", "number"]) -> None:
        """Raises ExpressionError where a column is unknown or the types do not fit, by evaluating it on zero rows."""
        if unknown := sorted(self.columns - set(schema.names)):
            raise ExpressionError(
                f"{self.text!r}: there is no column {unknown[0]!r}{_did_you_mean(unknown[0], schema)}"
            )
        value = self.evaluate(schema.empty_table().select(sorted(self.columns)))
        if not self.columns:
            raise ExpressionError(f"{self.text!r} uses no column")
        is_number = pa.types.is_integer(value.type) or pa.types.is_floating(value.type)
        if expected == "boolean" and not pa.types.is_boolean(value.type):
            raise ExpressionError(f"{self.text!r} is not true or false, but a {value.type}")
        if expected == "number" and not is_number:
            raise ExpressionError(f"{self.text!r} is not a number, but a {value.type}")

    def evaluate(self, table: pa.Table) -> pa.ChunkedArray | pa.Array:
        """One value per row of the table; nulls follow SQL. Raises ExpressionError."""
        try:
            value = self._value(self._tree, table)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise ExpressionError(f"{self.text!r}: {_first_line(error)}") from error
        return pa.repeat(value, table.num_rows) if isinstance(value, pa.Scalar) else value

    @cached_property
    def _tree(self) -> ast.expr:
        if len(self.text) > MAX_CHARS:
            raise ExpressionError(f"expression longer than {MAX_CHARS:,} characters: {self.text[:60]!r} ...")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # for "\\d" and the like in regular expressions
                tree = ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ExpressionError(f"{self.text!r} cannot be parsed: {getattr(error, 'msg', error)}") from None
        if _depth(tree) > _MAX_DEPTH:
            raise ExpressionError(f"{self.text[:60]!r} ... is nested too deeply")
        return tree

    def _value(self, node: ast.expr, table: pa.Table) -> Value:
        if (name := _column(node)) is not None:
            return table[name]
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return pa.scalar(value)
            case ast.BoolOp():
                combine = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
                result = self._value(node.values[0], table)
                for operand in node.values[1:]:
                    result = combine(result, self._value(operand, table))
                return result
            case ast.UnaryOp(op=ast.Not()):
                return pc.invert(self._value(node.operand, table))
            case ast.UnaryOp(op=ast.USub()):
                return pc.negate_checked(self._value(node.operand, table))
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return _ARITHMETIC[type(node.op)](self._value(node.left, table), self._value(node.right, table))
            case ast.Compare():
                return self._comparison(node, table)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*(self._value(argument, table) for argument in node.args))
            case _:
                written = ast.get_source_segment(self.text.strip(), node) or type(node).__name__
                raise ExpressionError(f"{self.text!r}: {written!r} is not supported; {_grammar()}")

    def _comparison(self, node: ast.Compare, table: pa.Table) -> Value:
        """`a < b < c` is `a < b and b < c`."""
        operands = [node.left, *node.comparators]
        links = [
            self._link(left, operator, right, table)
            for left, operator, right in zip(operands, node.ops, node.comparators, strict=False)
        ]
        return reduce(pc.and_kleene, links)

    def _link(self, left: ast.expr, operator: ast.cmpop, right: ast.expr, table: pa.Table) -> Value:
        """One comparison of two operands."""
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
            raise ExpressionError(f"{self.text!r}: a comparison that is not supported; {_grammar()}")
        if _is_null(left) or _is_null(right):
            raise ExpressionError(f"{self.text!r}: compare with null by `is None` or `is not None`")
        return _COMPARE[type(operator)](*_comparable(self._value(left, table), self._value(right, table)))

    def _is_in(self, value: ast.expr, items: Sequence[ast.expr], table: pa.Table) -> Value:
        """Null where the value is null, as in SQL."""
        if not items:
            raise ExpressionError(f"{self.text!r}: an empty list")
        array = self._value(value, table)
        return reduce(pc.or_kleene, (pc.equal(*_comparable(array, self._value(item, table))) for item in items))


def _column(node: ast.AST) -> str | None:
    """The name in `width` or `col("a name with spaces")`; None for any other node."""
    match node:
        case (
            ast.Name(id=name) | ast.Call(func=ast.Name(id="col"), args=[ast.Constant(value=str() as name)], keywords=[])
        ):
            return name
    return None


def _comparable(left: Value, right: Value) -> tuple[Value, Value]:
    """Users write dates and times as strings, times in UTC."""
    if isinstance(right, pa.Scalar) and pa.types.is_string(right.type) and pa.types.is_temporal(left.type):
        moment = right.cast(pa.timestamp("us"))
        right = (pc.assume_timezone(moment, "UTC") if getattr(left.type, "tz", None) else moment).cast(left.type)
    return left, right


def _matches(text: Value, regex: str) -> Value:
    """RE2 matches in time linear in the text, whatever the expression."""
    pc.match_substring_regex(pa.array([""]), regex)  # so that a bad expression fails on zero rows too
    return pc.match_substring_regex(text, regex)


def _as_float(value: Value) -> Value:
    return pc.cast(value, pa.float64())


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


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _grammar() -> str:
    return (
        "supported are columns, col('any name'), numbers, 'text', + - * /, < <= > >= == !=, in [..], is None, and, or, "
        f"not, and {', '.join(sorted(_FUNCTIONS))}"
    )


def _did_you_mean(name: str, schema: pa.Schema) -> str:
    import difflib

    close = difflib.get_close_matches(name, schema.names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
