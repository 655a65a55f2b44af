"""Defines the result of `verify`."""

from dataclasses import asdict, dataclass, field


@dataclass
class VerifyReport:
    """The numbers of items checked and the problems found."""

    shards: int = 0
    rows: int = 0
    pairs: int = 0
    pictures: int = 0
    rescored: int = 0
    scores_recomputed: int = 0
    """Number of rows whose scores, other than those of models, were recomputed."""
    max_score_difference: float = 0.0
    shards_missing: int = 0
    problems: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """Files of the damaged shards, manifests first. After they are deleted, the next build rebuilds these shards."""

    @property
    def holds(self) -> bool:
        """Whether no problems were found. Unfinished shards are not a problem."""
        return not self.problems

    def as_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        return asdict(self)
