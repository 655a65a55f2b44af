"""Loads a checkpoint in transformers' layout: its model, recipe and tokenizer."""

from pathlib import Path

import torch

from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.encode.model_error import ModelError
from pairmill.pipeline.encode.plain_tensors import DamagedWeightsError, UnsafeWeightsError, load_untrusted, problem_with
from pairmill.pipeline.encode.transformers_layout.architecture import TwoTowers, build, fill, tensor_of
from pairmill.pipeline.encode.transformers_layout.checkpoint import Checkpoint
from pairmill.pipeline.encode.transformers_layout.names import sources

Tensors = dict[str, torch.Tensor]


def load_towers(checkpoint: Checkpoint) -> TwoTowers:
    """The model in float32 on the CPU, ready for inference. Raises ModelError if its weights do not fit or are NaN."""
    tensors: Tensors = {}
    for path in checkpoint.weights:
        tensors |= _read(path)
    checkpoint.check_names(tensors)
    model = build(checkpoint.config)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    filled: Tensors = {}
    for name, source in sources(checkpoint.config).items():
        try:
            filled[name] = tensor_of(source, tensors, shapes[name])
        except RuntimeError:  # stacked tensors differ in width
            filled[name] = torch.empty(0)
        if filled[name].shape != shapes[name]:
            raise ModelError(f"{checkpoint.weights[0]}: {_shape(tensors, source.names[0])} does not match config.json")
        if not bool(torch.isfinite(filled[name]).all()):
            raise ModelError(f"{checkpoint.weights[0]}: the weights are broken: {source.names[0]} is NaN or infinite")
    fill(model, filled)
    return model.eval().requires_grad_(False)


def _read(path: Path) -> Tensors:
    """The tensors in a file. Raises ModelError."""
    try:
        found = load_untrusted(path)
    except UnsafeWeightsError:
        raise ModelError(
            f"{path} contains objects that are not tensors, so it is not loaded; ask its authors for safetensors"
        ) from None
    except (OSError, DamagedWeightsError) as error:
        raise ModelError(f"{path}: the weights do not load: {clean_text(str(error))}") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelError(f"{path} is not a dictionary of tensors")
    for name, value in found.items():
        if problem := problem_with(value):
            raise ModelError(f"{path}: the tensor {clean_text(str(name), 100)} {problem}")
    return found


def _shape(tensors: Tensors, name: str) -> str:
    return f"{name}, of shape {list(tensors[name].shape)},"
