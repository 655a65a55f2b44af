"""Defines the job of `pairmill score`."""

from typing import Literal

from pydantic import model_validator

from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig, ScoreKinds, ScoreName
from pairmill.schemas.jobs import CONFIG_VERSION
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.settings import Uri


class ScoreJob(ScoreKinds):
    """`pairmill score`: adds a score to a finished dataset, as columns in `columns/NAME/`. Without a kind, it computes
    the score that already has this name for the shards that lack it."""

    config_version: Literal[1] = CONFIG_VERSION
    """Version of the job file's format."""
    dataset: Uri
    """Output folder of a build or embed."""
    name: ScoreName
    """Name of the score, which begins the names of its columns."""
    partial: bool = False
    """Prepare a score that compares rows with the whole dataset from its finished shards, even if others are missing.
    The score keeps what it was prepared from."""
    s3: S3Config = S3Config()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _at_most_one_kind(self) -> "ScoreJob":
        if len(self.given) > 1:
            raise ValueError(f"a score is only one of: {', '.join(self.given)}; add each with its own command")
        return self

    @property
    def score(self) -> ScoreConfig | None:
        """What to compute; None: what the score's card says."""
        if not self.given:
            return None
        return ScoreConfig.model_validate({self.given[0]: getattr(self, self.given[0])})
