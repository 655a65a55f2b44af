"""Defines the image rules, which check the original file and its size. A null in a rule's column drops the row."""

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.rules.base import Column, SourceRules, Verdict, rule
from pairmill.pipeline.rules.blocklists import DigestKind, is_listed
from pairmill.schemas.status import Status


@rule(Status.MD5_BLOCKLISTED)
def md5_blocklisted(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The MD5 of the original bytes is in `md5_blocklist`. Detail: the MD5."""
    return _unless_listed(rows["md5"], "md5", rules.md5_blocklist, rules.files)


@rule(Status.SHA256_BLOCKLISTED)
def sha256_blocklisted(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The SHA-256 of the original bytes is in `sha256_blocklist`. Detail: the SHA-256."""
    return _unless_listed(rows["sha256"], "sha256", rules.sha256_blocklist, rules.files)


@rule(Status.IMAGE_TOO_SMALL)
def image_too_small(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The shorter side has fewer pixels than `image_min_side`. Detail: "640x90"."""
    if rules.image_min_side is None:
        return None
    shorter = pc.min_element_wise(rows["original_width"], rows["original_height"], skip_nulls=False)
    return pc.greater_equal(shorter, rules.image_min_side), _size(rows)


@rule(Status.IMAGE_ASPECT)
def image_aspect(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The ratio of the longer to the shorter side is above `image_max_aspect`. Detail: "640x90"."""
    if rules.image_max_aspect is None:
        return None
    sides = (rows["original_width"].cast(pa.float64()), rows["original_height"].cast(pa.float64()))
    longer, shorter = (f(*sides, skip_nulls=False) for f in (pc.max_element_wise, pc.min_element_wise))
    return pc.less_equal(pc.divide(longer, shorter), rules.image_max_aspect), _size(rows)


@rule(Status.IMAGE_AREA)
def image_area(rows: pa.Table, rules: SourceRules) -> Verdict:
    """Fewer pixels than `image_min_area` or more than `image_max_area`. Detail: "640x90"."""
    if rules.image_min_area is None and rules.image_max_area is None:
        return None
    area = pc.multiply(rows["original_width"].cast(pa.int64()), rows["original_height"].cast(pa.int64()))
    return _within(area, rules.image_min_area, rules.image_max_area), _size(rows)


@rule(Status.IMAGE_BYTES)
def image_bytes(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The original file has fewer bytes than `image_min_bytes` or more than `image_max_bytes`. Detail: the number of
    bytes."""
    if rules.image_min_bytes is None and rules.image_max_bytes is None:
        return None
    num_bytes = rows["original_bytes"]
    return _within(num_bytes, rules.image_min_bytes, rules.image_max_bytes), num_bytes.cast(pa.string())


@rule(Status.IMAGE_ONE_COLOR)
def image_one_color(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The whole picture has one color, according to the column `one_color`."""
    return pc.invert(rows["one_color"]) if rules.image_drop_one_color else None


def _within(values: Column, minimum: int | None, maximum: int | None) -> Column:
    keep = pc.is_valid(values)
    if minimum is not None:
        keep = pc.and_(keep, pc.greater_equal(values, minimum))
    if maximum is not None:
        keep = pc.and_(keep, pc.less_equal(values, maximum))
    return keep


def _size(rows: pa.Table) -> Column:
    sides = (rows["original_width"].cast(pa.string()), rows["original_height"].cast(pa.string()))
    return pc.binary_join_element_wise(*sides, "x")


def _unless_listed(digests: Column, kind: DigestKind, path: str | None, files: Files) -> Verdict:
    if path is None:
        return None
    raw = [None if digest is None else bytes.fromhex(digest) for digest in digests.to_pylist()]
    return pa.array([digest is not None for digest in raw] & ~is_listed(raw, kind, path, files)), digests
