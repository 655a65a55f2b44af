"""Defines the types of the public functions' keywords and converts the keywords to fields of a job."""

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from pairmill.jobs.job_file import s3_of
from pairmill.jobs.yaml_loader import YamlError, load_yaml
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.scores import ScoreKinds
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.select_steps import SelectStep

StrPath = str | os.PathLike[str]
"""A local path, or `s3://bucket/...`."""
Paths = StrPath | Sequence[StrPath]
Model = str | Mapping[str, object] | ModelConfig
"""`tiny`, `ViT-B-32:openai`, `hf-hub:ORG/REPO`, `openai/clip-vit-base-patch32`, a folder, a ModelConfig, or its fields:
`{"name": "tiny", "alias": "mine"}`."""
Models = Model | Sequence[Model]
Step = str | Mapping[str, object] | SelectStep
"""`"where: similarity >= 0.28"`, `{"top": {"by": "similarity", "fraction": 0.3}}`, or a SelectStep."""
Settings = Mapping[str, object]
"""Any fields of the job file, dotted: `{"fetch.timeout_s": 5}`."""
S3 = S3Config | Mapping[str, object]
"""The `s3` section of a job file: `{"endpoint": "http://minio:9000"}`."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def suggests_keywords(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function so that the TypeError for an unknown keyword suggests the most similar one."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for name in kwargs:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; it takes {', '.join(names)}"
                raise TypeError(f"{function.__name__}() has no keyword {name!r}{hint}")
        return function(*args, **kwargs)

    return checked


def refuse_beside_job(keywords: Mapping[str, object]) -> None:
    """Raise JobError if keywords are given together with a job object, because a job object is complete."""
    if given := [name for name, value in keywords.items() if value is not None]:
        raise JobError(f"{', '.join(given)}: give a job or keywords, not both")


def model_fields(name: str) -> dict[str, object]:
    """`NAME[:PRETRAINED]` as fields of ModelConfig."""
    if name.startswith("hf-hub:"):
        return {"name": name, "pretrained": None}
    name, _, pretrained = name.partition(":")
    return {"name": name, "pretrained": pretrained or None}


def models_of(models: Models | None, dtype: str | None = None) -> list[dict[str, object]] | None:
    """The models in the form of a job file, or None. `dtype` applies to models given by name."""
    if models is None:
        return None
    several = [models] if isinstance(models, str | Mapping | ModelConfig) else models
    return [model_of(model, dtype) for model in several]


def model_of(model: Model, dtype: str | None = None) -> dict[str, object]:
    """The model in the form of a job file. `dtype` applies to a model given by name."""
    if isinstance(model, ModelConfig):
        return model.model_dump(exclude_unset=True)
    if isinstance(model, Mapping):
        return dict(model)
    return {**model_fields(model), **({} if dtype is None else {"dtype": dtype})}


def step_of(step: Step) -> object:
    """The step in the form of a job file. Raises JobError for text that is not a step."""
    if isinstance(step, SelectStep):
        return step.model_dump(exclude_unset=True)
    return parse_step(step) if isinstance(step, str) else step


def parse_step(text: str) -> object:
    """Parse a step written in YAML, such as `where: ...` or `top: {...}`. Raises JobError."""
    step = _yaml(text)
    if not isinstance(step, dict):
        raise JobError(
            f"{text!r:.80} is not a step: write it as 'where: similarity >= 0.28' or 'sample: {{fraction: 0.1}}'"
        )
    return step


def parse_score(text: str) -> dict[str, object]:
    """Parse a score written in YAML, such as `head: weights.safetensors` or `classes: {...}`. Raises JobError."""
    score = _yaml(text)
    kind = score if isinstance(score, str) else next(iter(score), None) if isinstance(score, dict) else None
    if kind in ScoreKinds.model_fields and (score == kind or score == {kind: None}):
        raise JobError(f"{text!r} is not a score: write '{kind}: {{}}' for all defaults, or settings after the colon")
    if not isinstance(score, dict):
        raise JobError(f"{text!r} is not a score: write it as 'head: weights.safetensors' or 'classes: {{...}}'")
    return score


def _yaml(text: str) -> object:
    try:
        return load_yaml(text)
    except YamlError as error:
        raise JobError(f"{text!r:.80} is not valid YAML: {error}") from None


def s3_config(s3: S3 | None) -> S3Config:
    """The S3 settings as an S3Config. Raises JobError."""
    return s3 if isinstance(s3, S3Config) else s3_of({"s3": s3})


def text_of(path: StrPath | None) -> str | None:
    """The path as text, or None."""
    return None if path is None else os.fspath(path)
