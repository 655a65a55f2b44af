"""Defines the result of `verify`."""

from dataclasses import asdict, dataclass, field


@dataclass
class VerifyReport:
    """The number of items checked, and the problems found."""

    shards: int = 0
    rows: int = 0
    pairs: int = 0
    pictures: int = 0
    rescored: int = 0
    scores_recomputed: int = 0
    """Rows of added scores."""
    max_score_difference: float = 0.0
    shards_missing: int = 0
    problems: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """Files of the damaged shards, manifests first: once they are gone, the next build rebuilds these shards."""

    @property
    def holds(self) -> bool:
        """Whether every committed shard is intact. Shards that are not finished yet do not count."""
        return not self.problems

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)
