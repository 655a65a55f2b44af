"""Defines the scores that can be added to a finished dataset."""

import os
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pairmill.schemas.index import EmbeddingKind
from pairmill.schemas.settings import Settings, Uri

SCORE_NAME = r"[a-z][a-z0-9_]{0,39}"
ScoreName = Annotated[str, Field(pattern=f"^{SCORE_NAME}$")]
"""The name of a score: the start of the names of its columns, and of its folder in `columns/`."""


class _OneLine(Settings):
    """A kind whose most important setting can stand alone: `head: FILE` for `head: {weights: FILE}`."""

    _main: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        return {cls._main: value} if isinstance(value, str | os.PathLike) else value


class HeadScore(_OneLine):
    """A small network on an embedding, such as LAION's aesthetic predictors. One column: NAME."""

    _main = "weights"
    weights: Uri
    """A local file: `.safetensors`, or a `.pth` that holds only tensors."""
    model: str | None = None
    """Alias of the model whose embeddings the head takes. None: the dataset's only model."""
    of: EmbeddingKind = "image"
    """The embeddings of pictures or of captions."""
    activation: Literal["auto", "none", "relu", "sigmoid"] = "auto"
    """Between the layers. auto: none for LAION's aesthetic predictors, whose layers have none between them; ReLU for
    NSFW heads; a head of several layers of any other layout must say."""
    output: Literal["auto", "none", "sigmoid"] = "auto"
    """After the last layer. auto: sigmoid for NSFW heads, none for all others."""
    check_model: bool = True
    """Refuse the embeddings of any model but the one that the head was trained on, if the file says or is known to have
    been trained on one."""
    normalize: bool = True
    """Whether the embeddings are L2-normalized first, which undoes the rounding to float16 of the stored ones."""


class ClassesScore(_OneLine):
    """Zero-shot classification of pictures. Columns: NAME, the best class; NAME_index, its number; NAME_probability;
    NAME_margin, to the second-best class; and with `top`, NAME_top and NAME_top_probability, which are lists."""

    _main = "names"
    names: Uri = "imagenet"
    """`imagenet`; a text file with one class per line; or a `.json` file that maps each class to its prompts."""
    templates: Literal["openai-80", "simple"] | list[str] = "openai-80"
    """Prompt templates, averaged: OpenAI's 80 for ImageNet, the `simple` seven of these, or a list of your own, such as
    `a photo of a {}.`. Not used for a `.json` file."""
    model: str | None = None
    """Alias of the model whose embeddings are classified. None: the dataset's only model."""
    of: EmbeddingKind = "image"
    """Classify pictures, or captions."""
    top: Annotated[int, Field(ge=1, le=100)] = 1
    """How many of the best classes to store."""

    @field_validator("templates")
    @classmethod
    def _have_a_place_for_the_name(cls, templates: str | list[str]) -> str | list[str]:
        if not isinstance(templates, str) and (not templates or not all("{}" in each for each in templates)):
            raise ValueError("write {} in each template, where the name of the class goes")
        return templates


class ScoreKinds(Settings):
    """The kinds of scores, one field each."""

    head: HeadScore | None = None
    """A small network on an embedding: aesthetic predictors, NSFW heads, your own probes."""
    classes: ClassesScore | None = None
    """Zero-shot classification by names or prompts of classes."""

    @property
    def given(self) -> list[str]:
        """Names of the kinds that are set."""
        return [name for name in ScoreKinds.model_fields if getattr(self, name) is not None]


class ScoreConfig(ScoreKinds):
    """One score; exactly one kind is set."""

    @model_validator(mode="after")
    def _one_kind(self) -> "ScoreConfig":
        if len(self.given) != 1:
            raise ValueError(f"a score is exactly one of: {', '.join(ScoreKinds.model_fields)}")
        return self

    @property
    def kind(self) -> str:
        """The name of the kind that is set."""
        return self.given[0]
