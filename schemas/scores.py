"""Defines the job of `pairmill score`."""

from typing import Literal

from pydantic import model_validator

from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig, ScoreKinds, ScoreName
from pairmill.schemas.jobs import CONFIG_VERSION
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.settings import Uri


class ScoreJob(ScoreKinds):
    """`pairmill score`: adds a score to a finished dataset, as columns in `columns/NAME/`. If no kind is given, it
    computes the existing score of this name for the shards that lack it."""

    config_version: Literal[1] = CONFIG_VERSION
    """Version of the job file's format."""
    dataset: Uri
    """Output folder of a build or embed."""
    name: ScoreName
    """Name of the score, with which the names of its columns begin."""
    partial: bool = False
    """For scores that compare each row with the whole dataset: prepare the score from the finished shards even if
    others are missing. The score is not prepared again when the other shards are finished."""
    s3: S3Config = S3Config()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _at_most_one_kind(self) -> "ScoreJob":
        if len(self.given) > 1:
            raise ValueError(f"a score can be only one of: {', '.join(self.given)}; add each with its own command")
        return self

    @property
    def score(self) -> ScoreConfig | None:
        """The score to compute. None: the one in the score's card."""
        if not self.given:
            return None
        return ScoreConfig.model_validate({self.given[0]: getattr(self, self.given[0])})
