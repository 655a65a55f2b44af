"""Defines the rules that drop rows which an earlier dataset or a list already has; see `pipeline/known`."""

import pyarrow as pa

from pairmill.pipeline.rules.base import SourceRules, Verdict, rule
from pairmill.schemas.known import ValueKind
from pairmill.schemas.status import Status

_OF_PICTURES: tuple[ValueKind, ...] = ("sha256", "md5", "phash", "pdq")


@rule(Status.KNOWN_UID)
def known_uid(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The uid is known."""
    return _unless_known(rows, rules, "uid")


@rule(Status.KNOWN_URL)
def known_url(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The URL, exactly as given except for white space around it, is known. A row without a URL stays."""
    return _unless_known(rows, rules, "url")


@rule(Status.KNOWN_PICTURE)
def known_picture(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The SHA-256, MD5, phash or pdq of the picture is known. Rows without any of them stay. Detail: which one."""
    filters = rules.filters
    if filters is None or not filters.has(*_OF_PICTURES):
        return None
    first = filters.first_known(rows, _OF_PICTURES)
    return pa.array([kind is None for kind in first], pa.bool_()), pa.array(first, pa.string())


def _unless_known(rows: pa.Table, rules: SourceRules, kind: ValueKind) -> Verdict:
    filters = rules.filters
    if filters is None or not filters.has(kind):
        return None
    return pa.array(~filters.is_known(kind, rows))
