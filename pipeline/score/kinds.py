"""Lists the kinds of scores. Each kind is imported on first use, because kinds load torch and every worker imports this
module."""

from collections.abc import Callable
from importlib import import_module

from pairmill.pipeline.score.kind import ScoreKind
from pairmill.schemas.job.scores import ScoreConfig

_KINDS = {
    "head": "Head",
    "classes": "Classes",
    "neg_clip": "NegClip",
    "norm_sim": "NormSim",
    "density": "Density",
    "mix": "Mix",
    "captions": "Captions",
    "caption_model": "CaptionModel",
    "pictures": "Pictures",
    "text": "Text",
}
"""Kind (also the name of its module) -> name of its class."""


def kind_of(name: str, score: ScoreConfig) -> ScoreKind:
    """The score with this name and these settings."""
    kind = import_module(f"pairmill.pipeline.score.{score.kind}")
    make: Callable[[str, ScoreConfig], ScoreKind] = getattr(kind, _KINDS[score.kind])
    return make(name, score)
