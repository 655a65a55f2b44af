"""Formats the funnel: how many rows were rejected at each step, and why."""

from collections.abc import Iterator, Mapping

from pairmill.schemas.manifest import CustomRuleCount
from pairmill.schemas.status import Status, Step

_NO_RULES: Mapping[str, CustomRuleCount] = {}
_MIN_WIDTH = 23
"""Minimum width of the column of reasons: that of the longest Status."""


def funnel(rows_in: int, statuses: Mapping[str, int], custom_rules: Mapping[str, CustomRuleCount] = _NO_RULES) -> str:
    """How many rows were rejected at each step and why, as a plain-text table. Custom rules are listed by name."""
    losses = list(_losses(statuses, custom_rules))
    width = max([_MIN_WIDTH, *(len(reason) for _, reason, _ in losses)])
    lines = [f"{'rows in':<{width + 11}}{rows_in:>12,}"]
    left = rows_in
    for step, reason, count in losses:
        left -= count
        lines.append(f"  {step:<8} {reason:<{width}}{-count:>12,}{left:>12,}")
    kept = statuses.get(Status.OK, 0)
    lines.append(f"{'kept':<{width + 11}}{kept:>12,}  {kept / max(rows_in, 1):.1%}")
    return "\n".join(lines)


def _losses(
    statuses: Mapping[str, int], custom_rules: Mapping[str, CustomRuleCount]
) -> Iterator[tuple[Step, str, int]]:
    """(step, reason, rows) in the order in which rows are rejected. In each step, custom rules come last."""
    unnamed = statuses.get(Status.CUSTOM_RULE, 0) - sum(count.rows for count in custom_rules.values())
    for step in Step:
        for status in Status:
            count = unnamed if status is Status.CUSTOM_RULE else statuses.get(status, 0)
            if status.step is step and status is not Status.OK and count:
                yield step, status, count
        for name, rule in custom_rules.items():
            if rule.step is step:
                yield step, f"{Status.CUSTOM_RULE}: {name}", rule.rows
