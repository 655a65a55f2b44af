"""Formats the funnel: how many rows were rejected at each step, and why."""

from collections.abc import Mapping

from pairmill.pipeline.common.terminal_text import cells, padded
from pairmill.pipeline.dataset.losses import losses
from pairmill.schemas.manifest import CustomRuleCount
from pairmill.schemas.status import Status

_NO_RULES: Mapping[str, CustomRuleCount] = {}
_WIDTH = 23
"""Width of the column of reasons: that of the longest Status."""


def funnel(rows_in: int, statuses: Mapping[str, int], custom_rules: Mapping[str, CustomRuleCount] = _NO_RULES) -> str:
    """How many rows were rejected at each step and why, as a plain-text table. Custom rules are listed by name; a long
    name is on a line of its own, so that the numbers stay in their columns."""
    lines = [f"{'rows in':<{_WIDTH + 11}}{rows_in:>12,}"]
    left = rows_in
    for loss in losses(statuses, custom_rules):
        left -= loss.rows
        name = f"  {loss.step:<8} {padded(loss.reason, _WIDTH)}"
        if cells(loss.reason) > _WIDTH:
            lines.append(name)
            name = " " * (_WIDTH + 11)
        lines.append(f"{name}{-loss.rows:>12,}{left:>12,}")
    kept = statuses.get(Status.OK, 0)
    lines.append(f"{'kept':<{_WIDTH + 11}}{kept:>12,}  {kept / max(rows_in, 1):.1%}")
    return "\n".join(lines)
