"""Describes a dataset: its models and thresholds."""

import ast
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from pairmill.pipeline.columns.added_model import read_card
from pairmill.pipeline.dataset.footers import read_footer
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.schemas.job.rules import RulesConfig
from pairmill.schemas.subset import Subset


@dataclass(frozen=True)
class ModelFacts:
    """A model that scored the pairs."""

    alias: str
    name: str
    weights_sha256: str | None
    dtype: str | None


def models_of(snapshot: Snapshot) -> list[ModelFacts]:
    """The models of the build, then the added ones."""
    with snapshot.errors():
        found = [
            ModelFacts(each.alias, _name(each.name, each.pretrained), each.weights_sha256, each.dtype)
            for each in read_footer(snapshot.store, snapshot.chunk.shards[0].pairs).models
        ]
        for alias in snapshot.added.models:
            card = read_card(snapshot.store, alias)
            found.append(ModelFacts(alias, _name(card.name, card.pretrained), None, card.dtype))
    return found


def _name(name: str | None, pretrained: str | None) -> str:
    return " ".join(filter(None, [name, pretrained]))


def build_thresholds(rules: RulesConfig, added: Collection[str], scores: Sequence[str]) -> dict[str, float]:
    """Column -> minimum score of a pair that was kept. `added`: aliases of models that were added after the build."""
    if rules.min_similarity is None:
        return {}
    if isinstance(rules.min_similarity, dict):
        return {f"similarity_{alias}": value for alias, value in rules.min_similarity.items()}
    names = {name for name in scores if name.startswith("similarity")} - {f"similarity_{alias}" for alias in added}
    return {name: rules.min_similarity for name in scores if name in names}


def subset_thresholds(subset: Subset, scores: Sequence[str]) -> dict[str, float]:
    """Column -> the highest minimum that any step sets: `top` by a column, or `where` with `COLUMN >= NUMBER`."""
    found: dict[str, float] = {}
    for step, report in zip(subset.steps, subset.reports[-len(subset.steps) :] if subset.steps else [], strict=True):
        if step.top and report.threshold is not None:
            _raise_to(found, step.top.by, report.threshold)
        if step.where:
            for column, minimum in minimums(step.where):
                _raise_to(found, column, minimum)
    if "similarity" in found and (first := next((name for name in scores if name.startswith("similarity_")), None)):
        _raise_to(found, first, found["similarity"])
    return {name: value for name, value in found.items() if name in scores and math.isfinite(value)}


def _raise_to(found: dict[str, float], column: str, minimum: float) -> None:
    found[column] = max(minimum, found.get(column, minimum))


def minimums(where: str) -> Iterator[tuple[str, float]]:
    """(column, minimum) of the comparisons that every row must pass in a `where`: those joined only by `and`."""
    with warnings.catch_warnings(action="ignore"):  # about backslashes in strings, for example
        pending: list[ast.expr] = [ast.parse(where.strip(), mode="eval").body]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            pending += node.values
        elif isinstance(node, ast.Compare):
            for (left, right), operator in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
                column, number = (left, right) if isinstance(operator, ast.Gt | ast.GtE) else (right, left)
                is_order = isinstance(operator, ast.Gt | ast.GtE | ast.Lt | ast.LtE)
                if is_order and isinstance(column, ast.Name) and (minimum := _number(number)) is not None:
                    yield column.id, minimum


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return None if (number := _number(node.operand)) is None else -number
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        with suppress(OverflowError):
            return float(node.value)
    return None
