"""Loads models with open_clip, or from a checkpoint in transformers' layout. No other module does this."""

import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import safetensors
import torch

from pairmill.pipeline.common.text import describe
from pairmill.pipeline.encode.model_error import ModelError
from pairmill.pipeline.encode.transformers_layout import recipe
from pairmill.pipeline.encode.transformers_layout.architecture import lower_precision
from pairmill.pipeline.encode.transformers_layout.checkpoint import Checkpoint
from pairmill.pipeline.encode.transformers_layout.load import load_towers
from pairmill.pipeline.encode.transformers_layout.tokenizer import FolderTokenizer
from pairmill.pipeline.encode.weights import Weights
from pairmill.schemas.job.models import ModelConfig

_MAX_LOGIT_SCALE = math.log(sys.float_info.max)
_PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class LoadedModel:
    """The parts of a model."""

    model: Any
    """A model with the methods `encode_image` and `encode_text` of open_clip."""
    recipe: Any
    """The torchvision Compose for `ModelInput`."""
    tokenize: Any
    """Captions -> int64 [n, context_length]. Has an attribute `context_length`."""
    preprocessing: dict[str, object]
    """The recipe in the form of open_clip's `get_model_preprocess_cfg`."""
    logit_scale: float
    logit_bias: float | None


def load(config: ModelConfig, weights: Weights, device: str, dtype: torch.dtype) -> LoadedModel:
    """Load a model for inference. Raises ModelError."""
    if weights.checkpoint:
        return _from_checkpoint(weights.checkpoint, device, dtype)
    return _by_open_clip(config, weights, device, dtype)


def _from_checkpoint(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> LoadedModel:
    settings, tokenize = checkpoint.preprocessing, FolderTokenizer(checkpoint)
    model = load_towers(checkpoint)
    bias = None if model.logit_bias is None else float(model.logit_bias)
    scale = _factor(float(model.logit_scale), checkpoint.weights[0])
    if dtype != torch.float32:
        lower_precision(model, dtype)
    return LoadedModel(model.to(device), recipe.recipe(settings), tokenize, recipe.described(settings), scale, bias)


def _by_open_clip(config: ModelConfig, weights: Weights, device: str, dtype: torch.dtype) -> LoadedModel:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # an output from before 0.2 goes on with it
            model, steps = open_clip.create_model_from_pretrained(
                weights.name,
                pretrained=weights.pretrained,
                device=device,
                precision=_PRECISION[dtype],
                force_quick_gelu=config.quick_gelu,
            )
        tokenize = open_clip.get_tokenizer(weights.name)
    except Exception as error:  # for settings and weights that it does not expect, open_clip can raise anything
        raise ModelError(f"{weights.path}: the weights of {config.name!r} do not load: {describe(error)}") from error
    model.eval()
    scale, bias = (logit_of(model, name, weights) for name in ("logit_scale", "logit_bias"))
    return LoadedModel(
        model, steps, tokenize, open_clip.get_model_preprocess_cfg(model), _factor(scale or 0.0, weights.path), bias
    )


def _factor(scale: float, path: Path) -> float:
    """The factor whose logarithm is the `logit_scale` of a model. Raises ModelError if it is infinite or NaN."""
    if not scale < _MAX_LOGIT_SCALE:
        raise ModelError(f"{path}: the weights are broken: logit_scale is {scale}")
    return math.exp(scale)


def logit_of(model: Any, name: str, weights: Weights) -> float | None:
    """`logit_scale` (still a logarithm) or `logit_bias` of an open_clip model. None if the model has none.

    For timm's models, open_clip rounds both to bfloat16, an error of up to 2%, so they are read from the weights file.
    """
    value = getattr(model, name, None)
    if value is None:
        return None
    if value.dtype != torch.float32 and weights.path.suffix == ".safetensors":
        with safetensors.safe_open(weights.path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118  (not a dictionary)
                value = file.get_tensor(name)
    return float(value.detach().float().reshape(-1)[0])
