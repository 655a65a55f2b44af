"""Lists what rejected the rows of a dataset, in the order of the steps."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pairmill.schemas.manifest import CustomRuleCount
from pairmill.schemas.status import Status, Step


class Loss(NamedTuple):
    """Rows that one reason rejected."""

    step: Step
    status: Status
    rule: str | None
    """Name of a custom rule."""
    rows: int

    @property
    def reason(self) -> str:
        """The status, and for a custom rule its name."""
        return self.status if self.rule is None else f"{self.status}: {self.rule}"


def losses(statuses: Mapping[str, int], custom_rules: Mapping[str, CustomRuleCount]) -> Iterator[Loss]:
    """The losses in the order in which rows are rejected. In each step, custom rules come last."""
    unnamed = statuses.get(Status.CUSTOM_RULE, 0) - sum(count.rows for count in custom_rules.values())
    for step in Step:
        for status in Status:
            count = unnamed if status is Status.CUSTOM_RULE else statuses.get(status, 0)
            if status.step is step and status is not Status.OK and count:
                yield Loss(step, status, None, count)
        for name, rule in custom_rules.items():
            if rule.step is step:
                yield Loss(step, Status.CUSTOM_RULE, name, rule.rows)
