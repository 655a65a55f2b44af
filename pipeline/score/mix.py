"""Mixes columns by a formula such as `0.7 * rank(neg_clip) + 0.3 * rank(aesthetic)`.

The grammar is that of `select`, with two additional functions that compare a value with the values of the whole
dataset: `rank(x)`, the share of rows with a lower value, and `zscore(x)`, the distance from the mean in standard
deviations.
"""

import ast
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.reader.snapshot import DatasetError, Snapshot
from pairmill.pipeline.score.kind import Needs, NoFiles, OneNumber, RowScore, ScoreError, float_column
from pairmill.pipeline.score.sketch_scan import numbers_of, sketch_values
from pairmill.pipeline.score.value_sketch import ValueSketch
from pairmill.pipeline.select.comparisons import Value
from pairmill.pipeline.select.expression_errors import ExpressionError
from pairmill.pipeline.select.expressions import Expression, column_name
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import MixScore, ScoreConfig

_FUNCTIONS = ("rank", "zscore")
_STAND_IN = "pairmill relative value {}"
"""Name of the column with the values of the n-th call of `rank` or `zscore`."""


@dataclass(frozen=True)
class _Call:
    """A call in a mix, such as `rank(similarity)`."""

    function: str
    argument: Expression


@dataclass(frozen=True)
class _Outer(Expression):
    """A whole mix. Its calls of `rank` and `zscore` are replaced by columns with their values, the stand-ins."""

    @cached_property
    def nodes(self) -> list[ast.Call]:
        """The outermost calls of rank and zscore, in text order. Raises ExpressionError."""
        return _relative_calls(self._tree)

    @cached_property
    def columns(self) -> frozenset[str]:
        """Names of the columns used outside these calls, and of the stand-ins. Raises ExpressionError."""
        return _columns_outside(self._tree, self.nodes) | {_STAND_IN.format(each) for each in range(len(self.nodes))}

    def source(self, node: ast.expr) -> str:
        """The source text of a node."""
        return self._source(node)

    def _evaluate(self, node: ast.expr, table: pa.Table) -> Value:
        for number, call in enumerate(self.nodes):
            if node is call:
                return table[_STAND_IN.format(number)]
        return super()._evaluate(node, table)


@dataclass(frozen=True)
class _Parsed:
    """A parsed mix."""

    outer: _Outer
    calls: tuple[_Call, ...]

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the dataset that the mix uses."""
        stand_ins = {_STAND_IN.format(number) for number in range(len(self.calls))}
        return (self.outer.columns - stand_ins).union(*(call.argument.columns for call in self.calls))


@dataclass(frozen=True)
class Mix(OneNumber, NoFiles):
    """The kind `mix`. One column: NAME, float32; null where a value in the formula is null."""

    name: str
    score: ScoreConfig

    @property
    def settings(self) -> MixScore:
        """The settings of this kind."""
        assert self.score.mix is not None
        return self.score.mix

    @property
    def _parsed(self) -> _Parsed:
        try:
            return parse(self.settings.formula)
        except ExpressionError as error:
            raise ScoreError(str(error)) from None

    def resolved(self, snapshot: Snapshot) -> ScoreConfig:
        """Check the formula by evaluating it on zero rows."""
        parsed = self._parsed
        try:
            for column in sorted(parsed.columns - set(snapshot.schema.names)):
                if problem := snapshot.added.missing(column):
                    raise ScoreError(problem)
            for call in parsed.calls:
                call.argument.check(snapshot.schema, "number")
            stand_ins = [pa.field(_STAND_IN.format(number), pa.float64()) for number in range(len(parsed.calls))]
            parsed.outer.check(pa.schema([*snapshot.schema, *stand_ins]), "number")
        except ExpressionError as error:
            lacking = sorted(parsed.columns - set(snapshot.schema.names))
            raise ScoreError(f"{error}{_advice(snapshot, lacking)}") from None
        return self.score

    @property
    def needs(self) -> Needs:
        """The columns of the formula."""
        return Needs(self._parsed.columns, all_rows=bool(self._parsed.calls))

    def prepare(self, snapshot: Snapshot, tasks: Tasks, run: RunConfig) -> State:
        """Summarize the values of each call's argument in a sketch."""
        parsed = self._parsed
        if not parsed.calls:
            return State()
        sketches = sketch_values(
            snapshot,
            tasks,
            [call.argument for call in parsed.calls],
            [call.function == "rank" for call in parsed.calls],
            self.settings.over,
        )
        tensors: dict[str, npt.NDArray[np.generic]] = {}
        for number, (call, sketch) in enumerate(zip(parsed.calls, sketches, strict=True)):
            if not sketch.num_values:
                raise ScoreError(f"{call.argument.text} has no value in any row, so rows cannot be compared by it")
            if call.function == "zscore":
                _check_moments(call.argument.text, sketch)
            tensors |= {f"{number}.{name}": tensor for name, tensor in sketch.tensors().items()}
        return State(tensors)

    def open(self, state: State, run: RunConfig) -> RowScore:
        """Prepare to evaluate the formula with Arrow."""
        parsed = self._parsed
        sketches = [ValueSketch.from_tensors(_part(state, number)) for number in range(len(parsed.calls))]
        return _OpenMix(self.name, parsed, sketches)


@dataclass(frozen=True)
class _OpenMix:
    name: str
    parsed: _Parsed
    sketches: list[ValueSketch]

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns the score of each row. Raises DatasetError if a value of these rows is too large for the formula."""
        try:
            return self._mixed(rows)
        except ExpressionError as error:
            raise DatasetError(str(error)) from None

    def _mixed(self, rows: pa.Table) -> pa.Table:
        table = rows
        for number, (call, sketch) in enumerate(zip(self.parsed.calls, self.sketches, strict=True)):
            values, is_valid = numbers_of(call.argument, rows)
            relative = sketch.ranks(values) if call.function == "rank" else sketch.zscores(values)
            relative = np.where(is_valid, relative, np.nan)
            table = table.append_column(_STAND_IN.format(number), pa.array(relative, mask=np.isnan(relative)))
        with np.errstate(over="ignore"):  # an infinite value becomes null
            values, is_valid = numbers_of(self.parsed.outer, table)
            mixed = values.astype(np.float32)
        return pa.table({self.name: float_column(mixed, is_valid)})


def _check_moments(text: str, sketch: ValueSketch) -> None:
    """Raise ScoreError if a float64 cannot represent the deviation of the values."""
    if not (math.isfinite(sketch.mean) and math.isfinite(sketch.squares)):
        raise ScoreError(f"{text} has values whose squares are infinite; use rank instead of zscore")
    if sketch.squares < sys.float_info.min and not sketch.is_constant:
        raise ScoreError(f"{text} has differences whose squares are rounded to 0; use rank instead of zscore")


def parse(formula: str) -> _Parsed:
    """Parse a formula. Raises ExpressionError."""
    outer, calls = _Outer(formula.strip()), list[_Call]()
    for node in outer.nodes:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if len(node.args) != 1 or node.keywords:
            raise ExpressionError(f"{name} takes one column or expression, such as {name}(similarity)")
        if any(_relative_calls(node.args[0])):
            raise ExpressionError(
                f"{name} of a rank or zscore is not supported; add the inner call as a separate mix score first"
            )
        text = outer.source(node.args[0])
        calls.append(_Call(name, Expression(f"({text})" if "\n" in text or "\r" in text else text)))
    return _Parsed(outer, tuple(calls))


def _advice(snapshot: Snapshot, lacking: Sequence[str]) -> str:
    """Advice on how to add the columns that a mix lacks, if they are scores."""
    if not lacking:
        return ""
    commands = [f"  {pairmill_command('score', snapshot.store.root, each, '--score')} ..." for each in lacking]
    them = "it is a score, add it" if len(lacking) == 1 else "they are scores, add them"
    return "\n".join([f"\nThe dataset lacks {', '.join(lacking)}. If {them} first:", *commands])


def _relative_calls(tree: ast.AST) -> list[ast.Call]:
    """The outermost calls of rank and zscore, in text order."""
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in _FUNCTIONS:
        return [tree]
    return [call for child in ast.iter_child_nodes(tree) for call in _relative_calls(child)]


def _columns_outside(tree: ast.AST, calls: Sequence[ast.Call]) -> frozenset[str]:
    """Names of the columns that a tree uses outside the given calls."""
    if any(tree is call for call in calls):
        return frozenset()
    if (name := column_name(tree)) is not None:
        return frozenset({name})
    children = [
        child for child in ast.iter_child_nodes(tree) if not (isinstance(tree, ast.Call) and child is tree.func)
    ]
    return frozenset().union(*(_columns_outside(child, calls) for child in children))


def _part(state: State, number: int) -> dict[str, npt.NDArray[np.generic]]:
    """The tensors of the n-th call."""
    start = f"{number}."
    return {name.removeprefix(start): tensor for name, tensor in state.tensors.items() if name.startswith(start)}
