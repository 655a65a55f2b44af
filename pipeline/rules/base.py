"""Defines rules and applies the rules of a step to a shard.

A rule is one pure function over Arrow columns, registered with the Status of the rows that it drops:

    @rule(Status.CAPTION_TOO_SHORT)
    def caption_too_short(rows: pa.Table, rules: SourceRules) -> Verdict:
        if rules.caption_min_chars is None:
            return None
        return pc.greater_equal(pc.utf8_length(rows["caption_clean"]), rules.caption_min_chars)

It returns a boolean column (true: keep, false or null: drop), a tuple of that column and a string column of reasons,
or None if its setting is off. It sees the rows that all earlier rules kept, without their pictures.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.text import DETAIL_CHARS
from pairmill.pipeline.known.open_filters import OpenFilters, open_filters
from pairmill.pipeline.rules.custom import CustomRule, CustomRuleError
from pairmill.pipeline.rules.isolated import IsolatedRule
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.schemas.job.rules import RulesConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.pairs import IMAGE_COLUMN
from pairmill.schemas.s3 import FROM_ENVIRONMENT, S3Config
from pairmill.schemas.settings import Uri
from pairmill.schemas.status import Status, Step

Column: TypeAlias = pa.Array | pa.ChunkedArray
Verdict: TypeAlias = Column | tuple[Column, Column] | None
RuleFunction = Callable[[pa.Table, "SourceRules"], Verdict]
_CheckedVerdict = tuple[npt.NDArray[np.bool_], pa.Array | None]
_BoundRule = Callable[[pa.Table], _CheckedVerdict | None]


class SourceRules(RulesConfig):
    """A job's rules, bound to one source."""

    license_column: str | None = None
    """The column that `license_allow` reads; None if the source has none."""
    s3: S3Config = FROM_ENVIRONMENT
    """Credentials and endpoint for blocklists on S3."""
    output: Uri | None = None
    """The output folder, which contains the filters of `known`; None without filters."""

    @classmethod
    def of(cls, job: BuildJob, mapping: ColumnMapping | None = None) -> Self:
        """Bind a job's rules to its source. A source without captions cannot require them."""
        rules = cls(**job.rules.model_dump(), s3=job.s3, output=job.output if job.rules.known else None)
        if mapping is None:
            return rules
        update = {"license_column": mapping.output_name(mapping.license_column)}
        return rules.model_copy(update=update if mapping.has_captions else {**update, "require_caption": False})

    @property
    def files(self) -> Files:
        """Access to the blocklists."""
        return Files(self.s3)

    @property
    def filters(self) -> OpenFilters | None:
        """The filters of `known`; None if there are none."""
        return None if self.output is None else open_filters(self.output, self.files)


_REGISTRY: dict[Status, RuleFunction] = {}


def rule(status: Status) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as the rule that drops rows with `status`; it runs at `status.step`."""

    def register(function: RuleFunction) -> RuleFunction:
        if status in _REGISTRY:
            raise ValueError(f"{status.name} already has a rule: {_REGISTRY[status].__name__}")
        _REGISTRY[status] = function
        return function

    return register


def rules_at(step: Step) -> list[tuple[Status, RuleFunction]]:
    """The built-in rules of a step, in the order in which they run, which is that of the Status enum."""
    return [(status, _REGISTRY[status]) for status in Status if status.step is step and status in _REGISTRY]


def apply_rules(table: pa.Table, step: Step, rules: SourceRules, custom: Sequence[CustomRule] = ()) -> pa.Table:
    """The in-flight table with `status` and `status_detail` set on the rows that a rule of `step` drops.

    Each rule in turn checks the rows that are still `ok`, so a row gets at most one status. The number and order of
    rows, all other columns and the metadata do not change. The step's custom rules run last. Raises CustomRuleError if
    one of them fails, rather than silently dropping rows.
    """
    is_ok = pc.equal(table["status"], Status.OK.value)
    indices = np.flatnonzero(is_ok.to_numpy())
    # Without the pictures: filtering would copy hundreds of megabytes for every rule.
    rows = table.select([name for name in table.column_names if name != IMAGE_COLUMN.name])
    if len(indices) < table.num_rows:
        rows = rows.filter(is_ok)
    columns = _StatusColumns(table)
    for status, apply_rule in _active_rules(step, rules, custom):
        if len(indices) == 0:
            break
        verdict = apply_rule(rows)
        if verdict is None or verdict[0].all():
            continue
        keep, details = verdict
        columns.drop(indices[~keep], status, None if details is None else details.filter(pa.array(~keep)))
        indices, rows = indices[keep], rows.filter(pa.array(keep))
    return columns.applied_to(table)


class _StatusColumns:
    """The columns `status` and `status_detail` while rules change them."""

    def __init__(self, table: pa.Table) -> None:
        self._status = _flat(table["status"])
        self._detail = _flat(table["status_detail"])
        self._changed = False

    def drop(self, indices: npt.NDArray[np.intp], status: Status, details: pa.Array | None) -> None:
        """Set `status` for the rows with these indices; `details` has one string for each of them."""
        mask = np.zeros(len(self._status), dtype=bool)
        mask[indices] = True
        if details is None:
            details = pa.nulls(len(indices), self._detail.type)
        self._status = pc.replace_with_mask(self._status, mask, pa.scalar(status.value, self._status.type))
        self._detail = pc.replace_with_mask(self._detail, mask, _truncate(details).cast(self._detail.type))
        self._changed = True

    def applied_to(self, table: pa.Table) -> pa.Table:
        """`table` with its own columns replaced by these."""
        if not self._changed:
            return table
        for name, column in (("status", self._status), ("status_detail", self._detail)):
            index = table.schema.get_field_index(name)
            table = table.set_column(index, table.schema.field(index), column)
        return table


def _active_rules(step: Step, rules: SourceRules, custom: Sequence[CustomRule]) -> Iterator[tuple[Status, _BoundRule]]:
    for status, function in rules_at(step):
        yield status, partial(_apply_builtin, function, rules)
    for own in custom:
        if own.step is step:
            if isinstance(own.function, IsolatedRule):
                yield Status.RULE_CRASHED, partial(_apply_survival, own.name, own.function)
            yield Status.CUSTOM_RULE, partial(_apply_custom, own)


def _apply_builtin(function: RuleFunction, rules: SourceRules, rows: pa.Table) -> _CheckedVerdict | None:
    verdict = function(rows, rules)
    return None if verdict is None else _check_verdict(verdict, rows.num_rows)


def _apply_custom(own: CustomRule, rows: pa.Table) -> _CheckedVerdict:
    try:
        keep, reasons = _check_verdict(own.function(rows), rows.num_rows)
    except (Exception, SystemExit) as error:  # not KeyboardInterrupt, which may be Ctrl-C
        raise CustomRuleError.of(own.name, error) from error
    names = pa.repeat(pa.scalar(own.name), len(keep))
    if reasons is None:
        return keep, names
    # "skip": if a row has no reason, its detail is just the name.
    return keep, pc.binary_join_element_wise(names, reasons, ": ", null_handling="skip")


def _apply_survival(name: str, function: IsolatedRule, rows: pa.Table) -> _CheckedVerdict:
    try:
        alive = function.survives(rows)
    except Exception as error:  # whatever the rule raised in its process, KeyboardInterrupt too
        raise CustomRuleError.of(name, error) from error
    return alive, pa.repeat(pa.scalar(f"{name}: its process died"), rows.num_rows)


def _check_verdict(verdict: Any, num_rows: int) -> _CheckedVerdict:
    """The verdict as (mask [num_rows], string array or None). Raises TypeError if it is not a verdict on `num_rows`
    rows."""
    keep, details = verdict if isinstance(verdict, tuple) and len(verdict) == 2 else (verdict, None)
    if not isinstance(keep, Column) or not pa.types.is_boolean(keep.type):
        kind = keep.type if isinstance(keep, Column) else type(keep).__name__
        raise TypeError(f"a rule must return a pyarrow boolean array, or a tuple (keep, detail), not {kind}")
    if len(keep) != num_rows:
        raise TypeError(f"a rule must return one value per row, not {len(keep)} for {num_rows} rows")
    mask = _flat(keep).fill_null(False).to_numpy(zero_copy_only=False)
    if details is None:
        return mask, None
    if not isinstance(details, Column) or not _is_text(details.type) or len(details) != num_rows:
        raise TypeError("the detail of a rule must be a pyarrow string array with one value per row")
    return mask, _flat(details).cast(pa.string())


def _flat(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _truncate(details: pa.Array) -> pa.Array:
    return pc.utf8_slice_codeunits(details, 0, DETAIL_CHARS)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))
