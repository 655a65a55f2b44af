"""Defines the scores that can be added to a finished dataset."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from pairmill.schemas.index import EmbeddingKind
from pairmill.schemas.job.pictures import PictureScore
from pairmill.schemas.job.text import TextScore
from pairmill.schemas.settings import Settings, Uri

SCORE_NAME = r"[a-z][a-z0-9_]{0,39}"


def _score_name(name: str) -> str:
    if not re.fullmatch(SCORE_NAME, name):
        raise ValueError(
            "a name must be a lower-case letter followed by lower-case letters, digits or _, at most 40 in all"
        )
    return name


ScoreName = Annotated[str, AfterValidator(_score_name)]
"""The name of a score: the prefix of its columns and the name of its folder in `columns/`."""


class _OneLine(Settings):
    """A kind whose most important setting can be written alone: `head: FILE` for `head: {weights: FILE}`."""

    _main: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        return {cls._main: value} if isinstance(value, str | os.PathLike) else value


class HeadScore(_OneLine):
    """A small network on an embedding, such as LAION's aesthetic predictors. One column: NAME."""

    _main = "weights"
    weights: Uri
    """A local file: `.safetensors`, or a `.pth` that contains only tensors."""
    model: str | None = None
    """Alias of the model whose embeddings are the input of the head. None: the dataset's only model."""
    of: EmbeddingKind = "image"
    """The embeddings of pictures or of captions."""
    activation: Literal["auto", "none", "relu", "sigmoid"] = "auto"
    """Activation between the layers. auto: none for LAION's aesthetic predictors, which use none; ReLU for NSFW heads.
    For other heads with several layers, set it."""
    output: Literal["auto", "none", "sigmoid"] = "auto"
    """Activation after the last layer. auto: sigmoid for NSFW heads, none for all others."""
    check_model: bool = True
    """Refuse embeddings of any model but the one that the head was trained on. Has no effect if that model is
    unknown."""
    normalize: bool = True
    """L2-normalize the embeddings first. This corrects the rounding of stored embeddings to float16."""


class ClassesScore(_OneLine):
    """Zero-shot classification of pictures. Columns: NAME, the best class; NAME_index, its number; NAME_probability;
    NAME_margin, the margin over the second-best class; and with `top`, the lists NAME_top and NAME_top_probability."""

    _main = "names"
    names: Uri = "imagenet"
    """`imagenet`; a text file with one class per line; or a `.json` file that maps each class to its prompts."""
    templates: Literal["openai-80", "simple"] | list[str] = "openai-80"
    """Prompt templates, whose embeddings are averaged: OpenAI's 80 for ImageNet, the seven `simple` ones of these, or
    your own list, such as `a photo of a {}.`. Not used with a `.json` file."""
    model: str | None = None
    """Alias of the model whose embeddings are classified. None: the dataset's only model."""
    of: EmbeddingKind = "image"
    """Classify pictures or captions."""
    top: Annotated[int, Field(ge=1, le=100)] = 1
    """How many of the best classes to store."""

    @field_validator("templates")
    @classmethod
    def _have_a_place_for_the_name(cls, templates: str | list[str]) -> str | list[str]:
        if not isinstance(templates, str) and (not templates or not all("{}" in each for each in templates)):
            raise ValueError("each template needs {} where the class name goes")
        return templates


class NegClipScore(Settings):
    """negCLIPLoss: how well picture and caption fit, minus how easily each of them fits anything. One column: NAME."""

    model: str | None = None
    """Alias of the model whose embeddings are compared. None: the dataset's only model."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.01
    """Temperature of the loss. The paper uses 0.01 for OpenAI's models and 0.07 for DFN's."""
    batch: Annotated[int, Field(ge=2, le=1_000_000)] = 32_768
    """Number of rows that each row is compared with. Larger batches take more time and memory."""
    repeats: Annotated[int, Field(ge=1, le=100)] = 5
    """Number of batches to average over. The paper uses ten."""
    seed: Annotated[int, Field(ge=0, le=1 << 31)] = 0
    """Seed of the batches."""


class NormSimScore(_OneLine):
    """NormSim: how similar a picture is to a set of target pictures. One column: NAME."""

    _main = "target"
    target: Uri
    """The target pictures: the output folder of an embed with the same model, or a `.npy` array of their embeddings."""
    model: str | None = None
    """Alias of the model whose embeddings are compared. None: the dataset's only model."""
    target_model: str | None = None
    """Alias of the same model in the target dataset. None: the same alias as in this dataset."""
    norm: Literal["max", "inf", "2"] = "inf"
    """max: the greatest cosine. inf: the greatest absolute cosine, as in the paper's code. 2: the Euclidean norm of all
    cosines."""
    max_targets: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    """Maximum number of target pictures, sampled by a hash. A picture that is in several rows counts once."""

    @field_validator("norm", mode="before")
    @classmethod
    def _as_text(cls, norm: object) -> object:
        """The norm as text, because YAML parses 2 and .inf as numbers."""
        return f"{norm:g}" if isinstance(norm, int | float) else norm


class DensityScore(Settings):
    """How close a picture is to others in its own dataset. Columns: NAME, the mean cosine to its nearest neighbors in a
    sample; NAME_cluster, the number of its cluster; NAME_centroid, the cosine to the center of that cluster."""

    model: str | None = None
    """Alias of the model whose embeddings are compared. None: the dataset's only model."""
    of: EmbeddingKind = "image"
    """The embeddings of pictures or of captions."""
    clusters: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Number of clusters, found by spherical k-means on the sample."""
    sample: Annotated[int, Field(ge=2, le=10_000_000)] = 10_000
    """Number of distinct pictures or captions that each row is compared with, sampled by a hash."""
    neighbors: Annotated[int, Field(ge=1, le=1_000)] = 10
    """Number of nearest neighbors in the sample to average over, excluding the row's own picture or caption."""


class MixScore(_OneLine):
    """A formula over columns. One column: NAME."""

    _main = "formula"
    formula: str
    """An expression as in `select`, such as `0.7 * rank(neg_clip) + 0.3 * rank(aesthetic)`. rank(x) is the share of
    rows with a lower value, from 0 to 1, and zscore(x) is the distance from the mean in standard deviations. clip(x,
    low, high) limits a value to a range."""
    over: Literal["kept", "pairs"] = "kept"
    """The rows that rank and zscore compare with: those that the build kept, or all pairs."""


CaptionMeasure = Literal[
    "language",
    "tokens",
    "words",
    "characters",
    "readability",
    "repetition",
    "digits",
    "special",
    "alphanumeric",
    "capitals",
    "relations",
    "boilerplate",
    "toxic",
    "bits_per_character",
]


class CaptionsScore(Settings):
    """Properties of captions. One column per measure: NAME_MEASURE."""

    measures: Annotated[list[CaptionMeasure], Field(min_length=1)]
    """What to measure. The guide "Score captions" defines each measure. `captions: [words, language]` is short for this
    field."""
    model: str | None = None
    """Alias of the dataset's model whose tokenizer counts `tokens`. None: CLIP's own, with a context of 77."""
    toxic_words: Uri | None = None
    """For `toxic`: a UTF-8 file with one term per line. Lines that start with # are comments, so put a space before a
    hashtag. pairmill ships no such file."""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        value = {"measures": value} if isinstance(value, str | list) else value
        if isinstance(value, dict) and isinstance(value.get("measures"), str):
            value = {**value, "measures": [each.strip() for each in value["measures"].split(",")]}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "CaptionsScore":
        if len(set(self.measures)) < len(self.measures):
            raise ValueError("measures: list each measure only once")
        if ("toxic" in self.measures) != (self.toxic_words is not None):
            raise ValueError("give both the measure toxic and the file toxic_words, or neither")
        if self.model is not None and "tokens" not in self.measures:
            raise ValueError("model works only with the measure tokens")
        return self


class CaptionModelScore(_OneLine):
    """A caption for each picture, written by a CoCa model. Columns: NAME, and NAME_similarity with `similarity`."""

    _main = "model"
    model: Uri
    """A CoCa model that open_clip knows, `hf-hub:ORG/REPO`, or a folder with open_clip_config.json and weights."""
    pretrained: Uri | None = None
    """open_clip's tag of the weights, or a local file. None for `hf-hub:` names and folders."""
    similarity: str | None = None
    """Alias of the dataset's model that compares the new caption with the picture's stored embedding."""
    max_tokens: Annotated[int, Field(ge=7, le=256)] = 30
    """Maximum length of a caption in tokens, including start and end; at most the model's context."""


class ScoreKinds(Settings):
    """The kinds of scores, one field each."""

    head: HeadScore | None = None
    """A small network on an embedding: aesthetic predictors, NSFW heads, your own probes."""
    classes: ClassesScore | None = None
    """Zero-shot classification by class names or prompts."""
    neg_clip: NegClipScore | None = None
    """negCLIPLoss, from both embeddings of one model."""
    norm_sim: NormSimScore | None = None
    """NormSim: how similar a picture is to a set of target pictures."""
    density: DensityScore | None = None
    """How close a picture is to others in its own dataset, and its cluster."""
    mix: MixScore | None = None
    """A formula over columns, with ranks over the whole dataset."""
    captions: CaptionsScore | None = None
    """Properties of captions: language, length, readability, repetition and more."""
    caption_model: CaptionModelScore | None = None
    """A new caption for each picture, written by a CoCa model."""

    pictures: PictureScore | None = None
    """Measures of the picture itself: sharpness, exposure, colorfulness, JPEG quality, borders, PDQ."""
    text: TextScore | None = None
    """Text that is visible in pictures, and the similarity without it."""

    @property
    def given(self) -> list[str]:
        """Names of the kinds that are set."""
        return [name for name in ScoreKinds.model_fields if getattr(self, name) is not None]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings in which those of `above` override those of `below`. A kind that is written on one line overrides
    only its most important setting."""
    values = dict(below)
    for name, value in above.items():
        lower = values.get(name)
        if isinstance(lower, Mapping) and isinstance(value, str | os.PathLike) and (main := _main_setting(name)):
            value = {main: value}
        values[name] = merged(lower, value) if isinstance(lower, Mapping) and isinstance(value, Mapping) else value
    return values


def required_settings(kind: str, given: Mapping[str, object]) -> list[str]:
    """The settings of a kind that have no default and are missing from `given`."""
    fields = _kind_class(kind).model_fields
    return [name for name, field in fields.items() if field.is_required() and name not in given]


def _main_setting(kind: str) -> str | None:
    found = _kind_class(kind) if kind in ScoreKinds.model_fields else None
    return found._main if found is not None and issubclass(found, _OneLine) else None


def _kind_class(kind: str) -> type[Settings]:
    """The settings of a kind of score."""
    found: type[Settings] = get_args(ScoreKinds.model_fields[kind].annotation)[0]  # the other type of the union is None
    return found


class ScoreConfig(ScoreKinds):
    """One score; exactly one kind is set."""

    @model_validator(mode="after")
    def _one_kind(self) -> "ScoreConfig":
        if len(self.given) != 1:
            raise ValueError(f"a score needs exactly one of: {', '.join(ScoreKinds.model_fields)}")
        return self

    @property
    def kind(self) -> str:
        """The name of the kind that is set."""
        return self.given[0]
