"""Learns a mix of columns from labels: the weights of a logistic regression, as a formula for the score `mix`."""

import keyword
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.examples import Doubles
from pairmill.pipeline.evaluate.labeled_rows import RowFilter, labeled_rows, target_of
from pairmill.pipeline.evaluate.labels import Labels
from pairmill.pipeline.evaluate.lowest_hashes import LowestHashes
from pairmill.pipeline.evaluate.probe import Booleans, Probe, folds_of, train
from pairmill.pipeline.select.comparisons import as_doubles, is_number
from pairmill.pipeline.select.keys import SAMPLE, U64, uid_hashes


@dataclass(frozen=True)
class LabeledColumns:
    """The labeled rows that have a number in every column, in the order of a hash of their uids."""

    hashes: U64
    """Hashes of the uids [n]."""
    values: Doubles
    """Values of the columns [n, columns]."""
    labels: pa.Array
    """Labels [n], without nulls."""
    facts: Sequence[str]
    """Lines that say what was left out."""


@dataclass(frozen=True)
class LearnedMix:
    """A mix, with out-of-fold predictions for the rows it was trained on."""

    formula: str
    """For the score `mix`: a sum of weights times columns, the logit of the positive label."""
    name: str
    """Name of the positive label."""
    is_positive: Booleans
    probe: Probe


def gather_columns(
    rows: RowFilter, labels: Labels, columns: Sequence[str], limit: int, on_step: OnStep = ignore_step
) -> LabeledColumns:
    """The labeled rows; if there are more than `limit`, those whose uids have the lowest hashes. Memory is bounded by
    `limit`. Raises EvaluateError if a column is missing or is not numeric, or if no row has a label."""
    schema = rows.snapshot.schema
    for name in columns:
        if name not in schema.names:
            problem = rows.snapshot.added.missing(name)
            raise EvaluateError(problem or f"{rows.snapshot.store.root} has no column {name!r}")
        if not is_number(kind := schema.field(name).type):
            raise EvaluateError(f"column {name!r} is {kind}; a mix needs numbers")
    kept, num_labeled = LowestHashes(limit), 0
    for part in labeled_rows(rows, labels, columns, on_step):
        arrays = [as_doubles(part.rows[name].combine_chunks()).to_numpy(zero_copy_only=False) for name in columns]
        values = np.stack(arrays, axis=1)  # [rows, columns]
        usable = np.isfinite(values).all(axis=1)
        num_labeled += len(usable)
        hashes = uid_hashes(part.rows["uid"], SAMPLE, 0)
        kept.add(hashes[usable], part.labels.filter(pa.array(usable)), values[usable])
    facts = labels.facts()
    if not num_labeled:
        raise EvaluateError("\n".join(["no row of the dataset has a label", *facts]))
    if without := num_labeled - kept.num_added:
        facts.append(f"{counted(without, 'labeled row')} left out: a column has no number")
    hashes, found, values = kept.rows()
    return LabeledColumns(hashes, values, found, [*facts, *kept.facts()])


def learn_mix(
    rows: LabeledColumns, columns: Sequence[str], positive: str | None = None, on_step: OnStep = ignore_step
) -> LearnedMix:
    """Train on the standardized columns, and write the formula in their original units. Raises EvaluateError."""
    target = target_of(rows.labels, positive)
    _, powers = np.frexp(np.abs(rows.values).max(axis=0))  # [columns]
    values = np.ldexp(rows.values, -powers)  # exact, and no square leaves the range of float64
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    for name, width in zip(columns, deviation, strict=True):
        if not width > 0:
            raise EvaluateError(f"column {name!r} has the same value in all labeled rows; leave it out")
    folds = folds_of(rows.hashes, target.is_positive, (target.name, "others"))
    probe = train((values - mean) / deviation, target.is_positive, folds, on_step)
    scaled = probe.weights.weight / deviation  # [columns]
    bias = probe.weights.bias - float(scaled @ mean)
    with np.errstate(over="ignore"):
        weights = np.ldexp(scaled, -powers)
    for name, is_finite in zip(columns, np.isfinite(weights), strict=True):
        if not is_finite:
            raise EvaluateError(f"column {name!r} is so close to 0 that its weight would be infinite; leave it out")
    terms = [_term(weight, name) for weight, name in zip(weights.tolist(), columns, strict=True)]
    formula = " + ".join([*terms, repr(bias)]).replace("+ -", "- ")
    return LearnedMix(formula, target.name, target.is_positive, probe)


def _term(weight: float, name: str) -> str:
    """One term of the formula. Has all digits of the weight: with fewer, a column that is far from 0 but has a small
    spread, such as a time, would lose its effect."""
    is_plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    return f"{weight!r} * {name if is_plain else f'col({name!r})'}"
