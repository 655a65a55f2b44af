"""Lists the kinds of scores."""

from collections.abc import Callable

from pairmill.pipeline.score.classes import Classes
from pairmill.pipeline.score.head import Head
from pairmill.pipeline.score.kind import ScoreKind
from pairmill.schemas.job.scores import ScoreConfig

_KINDS: dict[str, Callable[[str, ScoreConfig], ScoreKind]] = {
    "head": Head,
    "classes": Classes,
}


def kind_of(name: str, score: ScoreConfig) -> ScoreKind:
    """The score with this name and these settings."""
    return _KINDS[score.kind](name, score)
