"""What a verification checked, and what does not hold."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class VerifyReport:
    """What was checked and what does not hold."""

    shards: int = 0
    rows: int = 0
    pairs: int = 0
    pictures: int = 0
    rescored: int = 0
    max_score_difference: float = 0.0
    shards_missing: int = 0
    problems: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """Manifests of the shards that do not hold: without them the next build makes these shards again."""

    @property
    def holds(self) -> bool:
        """Whether every committed shard is whole. A shard that is not done yet is no problem of this kind."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
