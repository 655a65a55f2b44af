"""Formats the funnel: how many rows were rejected at each step, and why."""

from collections.abc import Mapping

from pairmill.pipeline.dataset.losses import losses
from pairmill.schemas.manifest import CustomRuleCount
from pairmill.schemas.status import Status

_NO_RULES: Mapping[str, CustomRuleCount] = {}
_MIN_WIDTH = 23
"""Minimum width of the column of reasons: that of the longest Status."""


def funnel(rows_in: int, statuses: Mapping[str, int], custom_rules: Mapping[str, CustomRuleCount] = _NO_RULES) -> str:
    """How many rows were rejected at each step and why, as a plain-text table. Custom rules are listed by name."""
    lost = list(losses(statuses, custom_rules))
    width = max([_MIN_WIDTH, *(len(loss.reason) for loss in lost)])
    lines = [f"{'rows in':<{width + 11}}{rows_in:>12,}"]
    left = rows_in
    for loss in lost:
        left -= loss.rows
        lines.append(f"  {loss.step:<8} {loss.reason:<{width}}{-loss.rows:>12,}{left:>12,}")
    kept = statuses.get(Status.OK, 0)
    lines.append(f"{'kept':<{width + 11}}{kept:>12,}  {kept / max(rows_in, 1):.1%}")
    return "\n".join(lines)
