"""Lists the available models: open_clip's architectures, their tags, and the weights on disk."""

import logging
import warnings
from dataclasses import dataclass

from pairmill.pipeline.encode import hub
from pairmill.pipeline.encode.weights import input_side, is_on_disk
from pairmill.schemas.job.models import ModelConfig

_MAX_MODELS_TO_COUNT = 40


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One of open_clip's architectures, or the built-in model `tiny`."""

    name: str
    embedding_dim: int
    image_side: int
    """Pixels."""
    millions_of_parameters: float
    tags: tuple[str, ...]
    """Names of pretrained weights."""
    on_disk: tuple[str, ...]
    """The tags whose weights are in the local cache."""


_TINY = KnownModel("tiny", 128, 64, 3.8, ("built in",), ("built in",))


def known_models(pattern: str = "") -> list[KnownModel]:
    """The architectures, and `tiny`, whose names contain the pattern, ignoring case.

    If at most 40 architectures match, their parameters are counted, which takes a fifth of a second each. Otherwise,
    the counts are 0.
    """
    import open_clip

    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns in the root logger that no weights were loaded
    names = [name for name in open_clip.list_models() if pattern.lower() in name.lower()]
    found = [_describe(name, count=len(names) <= _MAX_MODELS_TO_COUNT) for name in names]
    return [_TINY, *found] if pattern.lower() in _TINY.name else found


def _describe(name: str, count: bool) -> KnownModel:
    import open_clip

    tags = tuple(open_clip.list_pretrained_tags_by_model(name))
    return KnownModel(
        name=name,
        embedding_dim=int((open_clip.get_model_config(name) or {}).get("embed_dim", 0)),
        image_side=input_side(ModelConfig(name=name)),
        millions_of_parameters=_count_parameters(name) / 1e6 if count else 0.0,
        tags=tags,
        on_disk=tuple(tag for tag in tags if is_on_disk(open_clip.get_pretrained_cfg(name, tag))),
    )


def _count_parameters(name: str) -> int:
    """Count parameters without allocating them. 0 if the model needs a file from Hugging Face that is not on disk."""
    import open_clip
    import torch

    try:
        with hub.offline(), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = open_clip.create_model(name, load_weights=False, device="meta")
    except (OSError, RuntimeError, ValueError, ImportError, NotImplementedError):
        return 0
    return sum(parameter.numel() for parameter in model.parameters())
