"""Embeds classes for zero-shot classification, by averaging the embeddings of their prompts.

As in Radford et al. 2021 (https://arxiv.org/abs/2103.00020), section 3.1.4, and open_clip's build_zero_shot_classifier,
the embeddings of the prompts are normalized, averaged, and normalized again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pairmill.pipeline.encode.clip_model import ClipModel
from pairmill.pipeline.encode.prompts import IMAGENET, filled_in, imagenet_classes
from pairmill.pipeline.score.kind import Floats, ScoreError
from pairmill.pipeline.select.tasks import OnPart, ignore_part
from pairmill.schemas.job.scores import ClassesScore

MAX_CLASSES, MAX_PROMPTS, MAX_PROMPT_CHARS = 100_000, 1_000, 1_000
_MAX_FILE_BYTES = 64_000_000
_PROMPTS_AT_ONCE = 512
"""Enough prompts to keep a GPU busy, but few enough that a CPU reports progress every few seconds."""
_SHORTEST = 1e-6
_EXAMPLE = '{"cat": ["a photo of a cat", "a kitten"], "dog": "a photo of a dog"}'


@dataclass(frozen=True)
class ClassTable:
    """Classes with their embeddings."""

    names: Sequence[str]
    embeddings: Floats
    """float32 [classes, dim], L2-normalized."""
    logit_scale: float
    logit_bias: float | None
    """If None, probabilities are a softmax over the classes; otherwise, a sigmoid for each class (SigLIP)."""


Classes = Sequence[tuple[str, Sequence[str]]]
"""(name, prompts) of each class, in order of their labels."""


def read_classes(settings: ClassesScore) -> Classes:
    """The classes that the settings name. Raises ScoreError."""
    if settings.names == IMAGENET:  # two of its classes are named "missile", and two "sunglasses"
        return [(name, _prompts(settings, name)) for name in imagenet_classes()]
    path = Path(settings.names)
    if path.suffix.lower() == ".json":
        return _checked(path, _given_prompts(path))
    names = [line.strip() for line in _read(path).split("\n") if line.strip()]
    return _checked(path, [(name, _prompts(settings, name)) for name in names])


def embed_classes(model: ClipModel, classes: Classes, on_part: OnPart = ignore_part) -> ClassTable:
    """Embed the classes. Raises ScoreError if the prompts of a class cancel out.

    `on_part`: called with the number of prompts embedded so far and the total number.
    """
    found, num_prompts = list[Floats](), sum(len(prompts) for _, prompts in classes)
    done = 0
    for part in _parts(classes):
        on_part(done, num_prompts)
        embeddings = model.encode_captions([prompt for prompts in part for prompt in prompts])  # [prompts, dim]
        ends = np.cumsum([len(prompts) for prompts in part])
        found += [each.mean(axis=0) for each in np.split(embeddings, ends[:-1])]
        done += len(embeddings)
    on_part(done, num_prompts)
    names, means = [name for name, _ in classes], np.stack(found)  # [classes, dim]
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if not (lengths > _SHORTEST).all():  # also true for NaN
        raise ScoreError(f"the prompts of the class {names[int(np.argmin(lengths))]!r} have no valid mean embedding")
    return ClassTable(names, (means / lengths).astype(np.float32), model.logit_scale, model.logit_bias)


def _parts(classes: Classes) -> Iterator[list[Sequence[str]]]:
    """Divide the classes' prompts into groups of about _PROMPTS_AT_ONCE prompts, without splitting a class."""
    part, size = list[Sequence[str]](), 0
    for _, prompts in classes:
        part.append(prompts)
        size += len(prompts)
        if size >= _PROMPTS_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _prompts(settings: ClassesScore, name: str) -> list[str]:
    templates = settings.templates
    if isinstance(templates, str):
        return filled_in(templates, name)
    return [template.replace("{}", name) for template in templates]


def _given_prompts(path: Path) -> Classes:
    """Read the prompts from a JSON file that maps each class to a prompt or to a list of prompts."""
    try:
        pairs = json.loads(_read(path), object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise ScoreError(f"{path}: is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ScoreError(f"{path}: must map each class to its prompts, for example {_EXAMPLE}")
    return [(name, [prompts] if isinstance(prompts, str) else prompts) for name, prompts in pairs]


def _checked(path: Path, classes: Classes) -> Classes:
    """Check that the classes are distinct, not too many, and have text prompts. Raises ScoreError."""
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise ScoreError(f"{path}: the number of classes must be 2 to {MAX_CLASSES:,}, but is {len(classes):,}")
    seen: set[str] = set()
    for name, prompts in classes:
        if name in seen:
            raise ScoreError(f"{path}: the class {name[:100]!r} is listed twice")
        seen.add(name)
        is_text = isinstance(prompts, list) and all(isinstance(each, str) and _is_text(each) for each in prompts)
        if not _is_text(name):
            raise ScoreError(f"{path}: {name[:100]!r} is not a valid class name")
        if not is_text or not 1 <= len(prompts) <= MAX_PROMPTS or max(map(len, [name, *prompts])) > MAX_PROMPT_CHARS:
            raise ScoreError(
                f"{path}: the class {name[:100]!r} must have 1 to {MAX_PROMPTS:,} prompts, and names and prompts must "
                f"have at most {MAX_PROMPT_CHARS:,} characters. Example: {_EXAMPLE}"
            )
    return classes


def _is_text(text: str) -> bool:
    """Whether `text` is not blank and can be stored as UTF-8, unlike lone surrogates, which JSON can contain."""
    return bool(text.strip()) and not any("\ud800" <= each <= "\udfff" for each in text)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ScoreError(f"{path}: is larger than {_MAX_FILE_BYTES:,} bytes")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ScoreError(f"{path}: is not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise ScoreError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
