"""Defines the job file. Every setting is checked before anything starts.

Unknown keys are errors, and the names of settings include their units. `fingerprint_fields()` lists the settings that
change the output; these must stay the same between two runs into the same output folder. The sections are in `job/`.
"""

from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from pairmill.schemas.job.fetch import FetchConfig
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.pictures import BuildScore, PictureScore
from pairmill.schemas.job.rules import RulesConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreName
from pairmill.schemas.job.source import SourceConfig, names_a_corpus
from pairmill.schemas.pairs import is_own_column
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.settings import Settings, Uri

CONFIG_VERSION: Literal[1] = 1


class BuildJob(Settings):
    """`pairmill build`: URLs and captions in, scored Parquet shards out."""

    config_version: Literal[1] = CONFIG_VERSION
    """Version of the job file's format."""
    source: SourceConfig
    output: Uri
    """Folder or `s3://bucket/...` to write the dataset to."""
    shard_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Rows per shard. Work is divided, committed and retried by shard. The default of `pairmill embed` is 1,024."""
    fetch: FetchConfig = FetchConfig()
    images: ImagesConfig = ImagesConfig()
    models: list[ModelConfig] = []
    """Models that score and embed the pairs, in one pass. Empty: pairs get no scores."""
    scores: dict[ScoreName, BuildScore] = {}
    """Picture scores by name, computed when the build decodes the pictures and stored in the columns NAME_measure of
    the pairs. To score a finished dataset, see `pairmill score`."""
    rules: RulesConfig = RulesConfig()
    s3: S3Config = S3Config()
    run: RunConfig = RunConfig()

    @model_validator(mode="before")
    @classmethod
    def _a_corpus_needs_no_caption(cls, values: Any) -> Any:
        if isinstance(values, dict) and names_a_corpus(values.get("source")):
            rules = values.get("rules") or {}
            if isinstance(rules, dict) and "require_caption" not in rules:
                values = {**values, "rules": {**rules, "require_caption": False}}
            values = {"shard_rows": 1_024, **values}  # original pictures are larger than stored ones
        return values

    @property
    def computes_md5(self) -> bool:
        """Whether the MD5 of the original bytes is needed."""
        known = any("md5" in known.kinds for known in self.rules.known)
        return self.images.md5 or self.rules.md5_blocklist is not None or known

    @property
    def picture_scores(self) -> dict[str, PictureScore]:
        """The settings of `scores`, by name."""
        return {name: score.pictures for name, score in self.scores.items()}

    @property
    def score_columns(self) -> pa.Schema:
        """The columns of `scores`."""
        return pa.schema([field for name, score in self.picture_scores.items() for field in score.columns(name)])

    def _refuse_settings_without_effect_on_a_corpus(self) -> None:
        """Refuse settings that would otherwise be silently ignored."""
        rules = self.rules
        if rules.url_block_hosts or rules.url_allow_hosts or rules.url_blocklist:
            raise ValueError("rules.url_*: a corpus is not downloaded; use pairmill select to filter by URL")
        if rules.image_drop_one_color:
            raise ValueError(
                "rules.image_drop_one_color: has no effect on a corpus; use pairmill select with the column one_color"
            )
        if any(kind in ("phash", "pdq") for known in rules.known for kind in known.kinds):
            raise ValueError(
                "rules.known: a corpus cannot be compared by phash or pdq here; use the step `known` of pairmill select"
            )
        if self.source.sha256_column:
            raise ValueError("source.sha256_column: has no effect on a corpus; see the output column sha256")

    def _check_score_columns(self) -> None:
        """Refuse scores with a column whose name another column already has."""
        names = self.score_columns.names
        for name in names:
            if is_own_column(name) or names.count(name) > 1:
                raise ValueError(f"scores: there would be two columns {name!r}; choose another name for the score")

    @model_validator(mode="after")
    def _fits_together(self) -> "BuildJob":
        aliases = [model.alias for model in self.models]
        if self.source.is_corpus and not self.models:
            raise ValueError("models: embed needs at least one model")
        if self.source.is_corpus:
            self._refuse_settings_without_effect_on_a_corpus()
        if len(set(aliases)) != len(aliases):
            raise ValueError(f"two models share an alias: {aliases}; give each its own")
        self._check_score_columns()
        if self.fetch.engine == "img2dataset" and self.images.max_pixels != ImagesConfig().max_pixels:
            raise ValueError("images.max_pixels: engine img2dataset does not support it")
        if any("pdq" in known.kinds for known in self.rules.known) and "pdq" not in self.score_columns.names:
            raise ValueError("rules.known: by: pdq needs a score with the measure pdq under scores")
        thresholds = self.rules.min_similarity
        if thresholds is not None and not aliases:
            raise ValueError("rules.min_similarity needs a model: add one under models")
        if isinstance(thresholds, dict) and (unknown := sorted(set(thresholds) - set(aliases))):
            raise ValueError(f"rules.min_similarity names {unknown}, but the models' aliases are {aliases}")
        return self


UNFINGERPRINTED = {
    "output",
    "run",
    "s3",
    "source.paths",
    "source.limit_rows",
    "fetch.timeout_s",
    "fetch.connect_timeout_s",
    "fetch.retries",
    "fetch.concurrency",
    "fetch.per_host_concurrency",
    "fetch.per_host_interval_s",
    "fetch.nameservers",
    "fetch.user_agent",
    "rules.known",
    "rules.url_blocklist",
    "rules.md5_blocklist",
    "rules.sha256_blocklist",
}
"""Settings that may change between two runs into the same output folder. The plan ensures that the input stays the
same. Blocklists and lists of known rows may move, but their content must not change."""


def fingerprint_fields(job: BuildJob, with_defaults: bool = True) -> dict[str, object]:
    """The settings that affect the output, as dotted name -> JSON value."""

    def flatten(value: object, name: str) -> dict[str, object]:
        if name in UNFINGERPRINTED:
            return {}
        if isinstance(value, dict) and value:
            parts = [flatten(inner, f"{name}.{key}" if name else key) for key, inner in value.items()]
            return {key: inner for part in parts for key, inner in part.items()}
        return {name: value}

    fields = flatten(job.model_dump(mode="json", exclude_defaults=not with_defaults), "")
    if fields.pop("source.kind", None) == "corpus":
        fields["source.held"] = True  # written as before 0.2, so that older outputs can still be resumed
    return fields
