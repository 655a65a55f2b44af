"""Expressions over columns, as a person writes them: `similarity >= 0.28 and width / height < 3`.

The grammar is a part of Python's own; the text is parsed, never run. Values follow SQL: a comparison with null is null,
and a row is kept only where the whole is true.
"""

import ast
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.schemas.errors import PairmillError

MAX_CHARS = 10_000
_MAX_DEPTH = 100

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
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
    """The expression cannot be read or does not fit the columns; the message quotes it."""


@dataclass(frozen=True)
class Expression:
    """`text` is what the person wrote; it is checked by `check`, once, before any data is read."""

    text: str

    @cached_property
    def columns(self) -> frozenset[str]:
        """Names of the columns that it reads. Raises ExpressionError."""
        called = {node.func for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        nodes = [node for node in ast.walk(self._tree) if node not in called]
        return frozenset(name for node in nodes if (name := _column(node)) is not None)

    def check(self, schema: pa.Schema, wants_truth: bool) -> None:
        """Raises ExpressionError where a column is unknown or the types do not fit, by trying it on no rows."""
        if unknown := sorted(self.columns - set(schema.names)):
            raise ExpressionError(
                f"{self.text!r}: there is no column {unknown[0]!r}{_did_you_mean(unknown[0], schema)}"
            )
        value = self.evaluate(schema.empty_table().select(sorted(self.columns)))
        if not self.columns:
            raise ExpressionError(f"{self.text!r} names no column")
        if wants_truth != pa.types.is_boolean(value.type):
            raise ExpressionError(f"{self.text!r} is {'no yes or no' if wants_truth else 'yes or no, not a number'}")
        if not (wants_truth or pa.types.is_integer(value.type) or pa.types.is_floating(value.type)):
            raise ExpressionError(f"{self.text!r} is no number, but {value.type}")

    def evaluate(self, table: pa.Table) -> pa.ChunkedArray | pa.Array:
        """One value per row of the table, null where a value that it needs is null. Raises ExpressionError."""
        try:
            value = self._value(self._tree, table)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise ExpressionError(f"{self.text!r}: {_first_line(error)}") from error
        return pa.repeat(value, table.num_rows) if isinstance(value, pa.Scalar) else value

    @cached_property
    def _tree(self) -> ast.expr:
        if len(self.text) > MAX_CHARS:
            raise ExpressionError(f"longer than {MAX_CHARS:,} characters: {self.text[:60]!r} ...")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of "\\d", which is what a regular expression needs
                tree = ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ExpressionError(f"{self.text!r} cannot be read: {getattr(error, 'msg', error)}") from None
        if _depth(tree) > _MAX_DEPTH:
            raise ExpressionError(f"{self.text[:60]!r} ... is nested too deeply")
        return tree

    def _value(self, node: ast.expr, table: pa.Table) -> Any:
        """An array or a scalar."""
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
                raise ExpressionError(f"{self.text!r}: {written!r} is not understood; {_grammar()}")

    def _comparison(self, node: ast.Compare, table: pa.Table) -> Any:
        result, left = None, self._value(node.left, table) if not _is_null(node.left) else None
        for operator, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(operator, ast.Is | ast.IsNot) and _is_null(right_node):
                one = pc.is_null(left) if isinstance(operator, ast.Is) else pc.is_valid(left)
                right = None
            elif isinstance(operator, ast.In | ast.NotIn) and isinstance(right_node, ast.List | ast.Tuple):
                one, right = self._is_among(left, right_node, table), None
                if isinstance(operator, ast.NotIn):
                    one = pc.invert(one)
            elif type(operator) in _COMPARE and not _is_null(right_node):
                right = self._value(right_node, table)
                one = _COMPARE[type(operator)](*_of_one_type(left, right))
            else:
                raise ExpressionError(f"{self.text!r}: a comparison that is not understood; {_grammar()}")
            result = one if result is None else pc.and_kleene(result, one)
            left = right
        return result

    def _is_among(self, value: Any, listed: ast.List | ast.Tuple, table: pa.Table) -> Any:
        """Null where the value is null, as in SQL."""
        result: Any = None
        for item in listed.elts:
            one = pc.equal(*_of_one_type(value, self._value(item, table)))
            result = one if result is None else pc.or_kleene(result, one)
        if result is None:
            raise ExpressionError(f"{self.text!r}: an empty list")
        return result


def _column(node: ast.AST) -> str | None:
    """`width`, or `col("a name with blanks")`."""
    match node:
        case (
            ast.Name(id=name) | ast.Call(func=ast.Name(id="col"), args=[ast.Constant(value=str() as name)], keywords=[])
        ):
            return name
    return None


def _of_one_type(left: Any, right: Any) -> tuple[Any, Any]:
    """Dates are written as strings, times in UTC."""
    if left is None:
        raise ExpressionError("null is compared by `is None` and `is not None`")
    if isinstance(right, pa.Scalar) and pa.types.is_string(right.type) and pa.types.is_temporal(left.type):
        moment = right.cast(pa.timestamp("us"))
        right = (pc.assume_timezone(moment, "UTC") if getattr(left.type, "tz", None) else moment).cast(left.type)
    return left, right


def _matches(text: Any, regex: str) -> Any:
    """By RE2, whose time is linear in the text."""
    pc.match_substring_regex(pa.array([""]), regex)  # a bad one is an error on no rows too
    return pc.match_substring_regex(text, regex)


def _as_float(value: Any) -> Any:
    return pc.cast(value, pa.float64())


def _text(value: Any) -> str:
    if not isinstance(value, pa.Scalar) or not pa.types.is_string(value.type):
        raise TypeError("the second part is a text in quotation marks")
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
        "columns, col('any name'), numbers, 'text', + - * /, < <= > >= == !=, in [..], is None, and, or, not, "
        f"and {', '.join(sorted(_FUNCTIONS))} are"
    )


def _did_you_mean(name: str, schema: pa.Schema) -> str:
    import difflib

    close = difflib.get_close_matches(name, schema.names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
