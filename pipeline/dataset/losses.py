"""Counts the rejected rows of a dataset by reason, in the order of the pipeline's steps."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pairmill.schemas.manifest import CustomRuleCount, ShardManifest
from pairmill.schemas.status import Status, Step


class Loss(NamedTuple):
    """The number of rows rejected for one reason."""

    step: Step
    status: Status
    rule: str | None
    """Name of the custom rule that rejected the rows; None if no custom rule did."""
    rows: int

    @property
    def reason(self) -> str:
        """The status and, for a custom rule, its name."""
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


def in_words(reason: str) -> str:
    """The reason for a loss in words. Names of custom rules are unchanged."""
    status, colon, rule = reason.partition(": ")
    return status.replace("_", " ") + colon + rule


@dataclass
class StatusCounts:
    """The statuses of all rows, summed over manifests."""

    statuses: Counter[str] = field(default_factory=Counter)
    custom_rules: dict[str, CustomRuleCount] = field(default_factory=dict)

    def add(self, manifest: ShardManifest) -> None:
        """Add the statuses of one shard."""
        self.statuses.update(manifest.statuses)
        for name, count in manifest.custom_rules.items():
            before = self.custom_rules[name].rows if name in self.custom_rules else 0
            self.custom_rules[name] = CustomRuleCount(step=count.step, rows=before + count.rows)

    def losses(self) -> Iterator[Loss]:
        """The losses in the order in which rows are rejected."""
        return losses(self.statuses, self.custom_rules)
