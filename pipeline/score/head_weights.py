"""Reads the weights of a head from a file. Never unpickles objects.

The layout is recognized by the names and shapes of the tensors:

    weight, bias                            one linear layer: LAION's aesthetic predictor V1
    layers.0.weight, layers.2.weight, ...   several consecutive layers: V2 and its successors, and pairmill's probes
    0.weight, 2.weight, ...                 the same, saved from a torch.nn.Sequential
    linear_1.weight, linear_2.weight, ...   the same with other names: LAION's NSFW heads, converted from Keras
    mean, variance; norm.mean, ...          in addition to any of these: standardize the input (Keras' Normalization)

V1: https://github.com/LAION-AI/aesthetic-predictor. V2: https://github.com/christophschuhmann/improved-aesthetic-
predictor, whose layers 0, 2, 4, 6, 7 have only dropout between them, and whose variant "reluMSE", with layers 0, 3, 6,
9, 11, has ReLUs. NSFW heads: https://github.com/LAION-AI/CLIP-based-NSFW-Detector.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import torch

from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.encode.plain_tensors import (
    DamagedWeightsError,
    UnsafeWeightsError,
    load_untrusted,
    problem_with,
)
from pairmill.pipeline.score.kind import ScoreError
from pairmill.schemas.index import EmbeddingKind

Activation = Literal["none", "relu", "sigmoid"]
Output = Literal["none", "sigmoid"]
Doubles = npt.NDArray[np.float64]

Shape = tuple[int, ...]

MAX_BYTES = 1 << 30
MAX_NUMBERS = 1 << 26
"""Maximum number of values in a head: half a gigabyte as float64, and dozens of times the size of the largest public
head."""
_LAYER = re.compile(r"(?:[a-z_]+[._])?(\d{1,4})\.(weight|bias)")
_NORMALIZATION = re.compile(r"(?:[a-z_]+\.)?(mean|variance)")
_V2_LAYERS, _RELU_MSE_LAYERS = (0, 2, 4, 6, 7), (0, 3, 6, 9, 11)
_KEY = "pairmill"


@dataclass(frozen=True)
class HeadModel:
    """The model whose embeddings a head was trained on."""

    names: tuple[str, ...]
    """Names of its architecture in open_clip, or names on the Hugging Face Hub."""
    pretrained: str | None = None
    weights_sha256: str | None = None
    """If set, only this checksum is compared."""

    def __str__(self) -> str:
        return f"{self.names[0]}:{self.pretrained}" if self.pretrained else self.names[0]


OPENAI_L14 = HeadModel(("ViT-L-14", "ViT-L-14-quickgelu"), "openai")
OPENAI_B32 = HeadModel(("ViT-B-32", "ViT-B-32-quickgelu"), "openai")

_PUBLIC = (  # (norm of the weight, bias) of the affine map that the layers form together, and the model
    (28.44440, 3.529372, OPENAI_L14),  # V1, sa_0_4_vit_l_14_linear.pth
    (27.57177, 3.421471, OPENAI_B32),  # V1, sa_0_4_vit_b_32_linear.pth
    (17.99562, 5.236646, OPENAI_L14),  # V2, sac+logos+ava1-l14-linearMSE.pth
)
_RELU_MSE_MODELS: dict[tuple[int, ...], HeadModel] = {
    (768, 1_024, 128, 64, 16, 1): OPENAI_L14,
    (512, 1_024, 128, 64, 16, 1): OPENAI_B32,
}
_NSFW_MODELS: dict[tuple[int, ...], HeadModel] = {(768, 64, 512, 256, 1): OPENAI_L14, (512, 32, 32, 1): OPENAI_B32}
"""Width of the input and of each layer -> model. LAION's NSFW and reluMSE heads are all for OpenAI's models."""


@dataclass(frozen=True)
class HeadFile:
    """The head in a file. Properties that the file does not specify are None."""

    layers: tuple[tuple[Doubles, Doubles], ...]
    """(weight [out, in], bias [out]) of each layer, in order."""
    mean: Doubles | None = None
    variance: Doubles | None = None
    """Mean and variance of the input, both [in] or both None."""
    activation: Activation | None = None
    output: Output | None = None
    model: HeadModel | None = None
    of: EmbeddingKind | None = None
    """Whether the head was trained on embeddings of pictures or of captions."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the input, each hidden layer, and the output."""
        return (self.layers[0][0].shape[1], *(len(bias) for _, bias in self.layers))


def read_head(path: Path) -> HeadFile:
    """Read the head in a file. Raises ScoreError if the file is not a head, is damaged, or needs unpickling."""
    tensors, about = _read(path)
    known = {match[1]: name for name in tensors if (match := _NORMALIZATION.fullmatch(name))}
    numbers, layers = _layers(path, [name for name in tensors if name not in known.values()])
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    parts = [known.get(part, "") for part in ("mean", "variance")]
    _check_shapes(path, [(shapes[weight], shapes[bias]) for weight, bias in layers], [*map(shapes.get, parts)])
    doubles = {name: _as_doubles(path, name, tensor) for name, tensor in sorted(tensors.items())}
    mean, variance = map(doubles.get, parts)
    if variance is not None and not (variance > 0).all():
        raise ScoreError(f"{path}: a variance is not positive")
    head = HeadFile(tuple((doubles[weight], doubles[bias]) for weight, bias in layers), mean, variance)
    return _described(path, head, about) if about else _recognized(head, numbers)


def _recognized(head: HeadFile, numbers: tuple[int, ...]) -> HeadFile:
    """Complete a head without metadata: recognize a public head by its layer numbers, shapes and values."""
    if len(head.layers) == 1 or numbers == _V2_LAYERS:
        return replace(head, activation="none", model=_public_model(head.layers))
    if numbers == _RELU_MSE_LAYERS:
        return replace(head, activation="relu", output="none", model=_RELU_MSE_MODELS.get(head.sizes))
    if head.mean is not None and head.sizes in _NSFW_MODELS:
        return replace(head, activation="relu", output="sigmoid", model=_NSFW_MODELS[head.sizes])
    return head


def affine(layers: tuple[tuple[Doubles, Doubles], ...]) -> tuple[Doubles, Doubles]:
    """Merge layers without activations between them into one layer: (weight [out, in], bias [out])."""
    weight, bias = layers[0]
    for next_weight, next_bias in layers[1:]:
        weight, bias = next_weight @ weight, next_weight @ bias + next_bias
    return weight, bias


def head_metadata(
    model: HeadModel,
    activation: Activation,
    output: Output,
    of: EmbeddingKind | None = None,
    training: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """The metadata for a safetensors file that tells `read_head` everything about the head.

    `training`: JSON values for people; no code reads them.
    """
    about = {
        "model": {"names": model.names, "pretrained": model.pretrained, "weights_sha256": model.weights_sha256},
        "activation": activation,
        "output": output,
        "of": of,
        "training": training,
    }
    return {_KEY: json.dumps(about, sort_keys=True)}


def _read(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """(plain tensors, metadata about the head)."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ScoreError(f"{path}: is larger than {MAX_BYTES:,} bytes, too large for a head")
        tensors: Any = load_untrusted(path)
        about = _metadata(path) if path.suffix == ".safetensors" else {}
    except OSError as error:
        raise ScoreError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnsafeWeightsError:
        raise ScoreError(
            f"{path}: contains more than tensors, and pairmill never unpickles objects; save its state_dict() as "
            ".safetensors"
        ) from None
    except DamagedWeightsError as error:
        reason = clean_text(str(error), 200)
        raise ScoreError(f"{path}: not a complete weights file (half-written?): {reason}") from None
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):  # a training checkpoint
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(each, torch.Tensor) for each in tensors.values()):
        raise ScoreError(f"{path}: is not a set of named tensors such as a head's state_dict()")
    for name, tensor in tensors.items():
        if problem := problem_with(tensor):
            raise ScoreError(f"{path}: the tensor {str(name)[:100]!r} {problem}")
    if (numbers := sum(tensor.nelement() for tensor in tensors.values())) > MAX_NUMBERS:  # tensors can share bytes
        raise ScoreError(f"{path}: has {numbers:,} values, too many for a head: at most {MAX_NUMBERS:,} are allowed")
    return {str(name): tensor.detach() for name, tensor in tensors.items()}, about


def _metadata(path: Path) -> Mapping[str, Any]:
    """Read the metadata about the head from a safetensors file. Raises DamagedWeightsError."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about: Any = json.loads((file.metadata() or {}).get(_KEY, "{}"))
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise DamagedWeightsError(str(error)) from None
    return about if isinstance(about, dict) else {_KEY: about}


def _layers(path: Path, names: Iterable[str]) -> tuple[tuple[int, ...], tuple[tuple[str, str], ...]]:
    """(numbers of the layers in the file, for each layer the names of its weight and its bias)."""
    if set(names) == {"weight", "bias"}:
        return (0,), (("weight", "bias"),)
    found: dict[int, dict[str, str]] = {}
    for name in names:
        match = _LAYER.fullmatch(name)
        if match is None:
            raise ScoreError(
                f"{path}: the tensor {name[:100]!r} is not part of a head; a head consists of weight and bias, "
                "or of layers.N.weight and layers.N.bias"
            )
        parts = found.setdefault(int(match[1]), {})
        if match[2] in parts:
            raise ScoreError(f"{path}: has two layers with the number {match[1]}; a head is a single network")
        parts[match[2]] = name
    numbers = tuple(sorted(found))
    for number in numbers:
        if len(found[number]) != 2:
            raise ScoreError(f"{path}: layer {number} has no {({'weight', 'bias'} - found[number].keys()).pop()}")
    if not numbers:
        raise ScoreError(f"{path}: has no layers")
    return numbers, tuple((found[number]["weight"], found[number]["bias"]) for number in numbers)


def _check_shapes(path: Path, shapes: Sequence[tuple[Shape, Shape]], normalization: Sequence[Shape | None]) -> None:
    """Check that the layers fit together. Raises ScoreError.

    `shapes`: the shapes of the weight and the bias of each layer. `normalization`: those of the mean and the variance.
    """
    width = shapes[0][0][-1] if shapes[0][0] else 0
    for weight, bias in shapes:
        if len(weight) != 2 or bias != weight[:1] or weight[1] != width or 0 in weight:
            raise ScoreError(f"{path}: its layers do not fit together: {[each for each, _ in shapes]}")
        width = weight[0]
    if width != 1:
        raise ScoreError(f"{path}: its last layer has {width:,} outputs; a head has one")
    expected = shapes[0][0][1:]
    if any(each != expected for each in normalization) and any(each is not None for each in normalization):
        raise ScoreError(f"{path}: mean and variance must both have the width of the input, {expected[0]:,}")


def _as_doubles(path: Path, name: str, tensor: torch.Tensor) -> Doubles:
    """The values of a tensor. Raises ScoreError for NaN, infinity, and values that float32 cannot represent."""
    doubles = tensor.double()
    if not bool(torch.isfinite(doubles.float()).all()):
        what = "NaN or infinite values" if not bool(torch.isfinite(doubles).all()) else "values beyond float32"
        raise ScoreError(f"{path}: the tensor {name[:100]!r} has {what}: the weights are broken")
    made: Doubles = doubles.numpy()
    return made


def _described(path: Path, head: HeadFile, about: Mapping[str, Any]) -> HeadFile:
    """Complete a head, such as a probe, from the metadata in its file."""
    try:
        model = about["model"]
        names = tuple(str(name)[:200] for name in model["names"])
        known = HeadModel(names, model["pretrained"], model["weights_sha256"])
        activation, output, of = about["activation"], about["output"], about.get("of")
        if not names or activation not in ("none", "relu", "sigmoid") or output not in ("none", "sigmoid"):
            raise ValueError
        if of not in (None, "image", "text"):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ScoreError(f"{path}: its metadata about the head is invalid") from None
    return HeadFile(head.layers, head.mean, head.variance, activation, output, known, of)


def _public_model(layers: tuple[tuple[Doubles, Doubles], ...]) -> HeadModel | None:
    """The model of a public head, recognized by its values; None for any other head."""
    weight, bias = affine(layers)
    for norm, public_bias, model in _PUBLIC:
        if abs(np.linalg.norm(weight) - norm) < 1e-4 and abs(bias[0] - public_bias) < 1e-5:
            return model
    return None
