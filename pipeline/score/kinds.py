"""Lists the kinds of scores."""

from collections.abc import Callable

from pairmill.pipeline.score.caption_model import CaptionModel
from pairmill.pipeline.score.captions import Captions
from pairmill.pipeline.score.classes import Classes
from pairmill.pipeline.score.density import Density
from pairmill.pipeline.score.head import Head
from pairmill.pipeline.score.kind import ScoreKind
from pairmill.pipeline.score.mix import Mix
from pairmill.pipeline.score.neg_clip import NegClip
from pairmill.pipeline.score.norm_sim import NormSim
from pairmill.pipeline.score.pictures import Pictures
from pairmill.pipeline.score.text import Text
from pairmill.schemas.job.scores import ScoreConfig

_KINDS: dict[str, Callable[[str, ScoreConfig], ScoreKind]] = {
    "head": Head,
    "classes": Classes,
    "neg_clip": NegClip,
    "norm_sim": NormSim,
    "density": Density,
    "mix": Mix,
    "captions": Captions,
    "caption_model": CaptionModel,
    "pictures": Pictures,
    "text": Text,
}


def kind_of(name: str, score: ScoreConfig) -> ScoreKind:
    """The score with this name and these settings."""
    return _KINDS[score.kind](name, score)
