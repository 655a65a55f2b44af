"""Reads config.json, which describes the architecture of a CLIP or SigLIP model.

The defaults are those of CLIPConfig and SiglipConfig in transformers 5.24, because config files omit default values.
All sizes are bounded, because the files come from strangers.
"""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.encode.model_error import ModelError

MAX_JSON_BYTES = 8 << 20
EOS_BEFORE_4_32 = 2
"""`eos_token_id` of CLIP in configurations from before transformers 4.32. It was wrong, so the embedding is read at the
highest token instead (https://github.com/huggingface/transformers/pull/24773)."""

Size = Annotated[int, Field(ge=1, le=1 << 16)]
Layers = Annotated[int, Field(ge=1, le=512)]
Positions = Annotated[int, Field(ge=2, le=4096)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Tower(_Config):
    """The transformer of one tower, for pictures or captions."""

    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Size = 12
    hidden_act: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] = "quick_gelu"
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5

    @model_validator(mode="after")
    def _heads_are_equal(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size is not a multiple of num_attention_heads, {self.num_attention_heads}")
        return self


class Text(Tower):
    """A text tower."""

    vocab_size: Annotated[int, Field(ge=1, le=1 << 22)]
    max_position_embeddings: Positions
    """Length of the context, in tokens."""


class Vision(Tower):
    """A vision tower. Pictures and patches are square, and sizes are in pixels."""

    num_channels: Literal[3] = 3
    image_size: Annotated[int, Field(ge=1, le=4096)] = 224
    patch_size: Size

    @model_validator(mode="after")
    def _holds_a_patch(self) -> Self:
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size is larger than image_size, {self.image_size}")
        return self


class ClipText(Text):
    """CLIP's text tower. It is causal, and the embedding is read at the end-of-text token."""

    hidden_size: Size = 512
    intermediate_size: Size = 2048
    num_attention_heads: Size = 8
    vocab_size: Annotated[int, Field(ge=1, le=1 << 22)] = 49_408
    max_position_embeddings: Positions = 77
    eos_token_id: int = 49_407
    """The token at which the embedding is read. See also `EOS_BEFORE_4_32`."""


class ClipVision(Vision):
    """CLIP's vision tower. The embedding is read at a class token."""

    patch_size: Size = 32


class SiglipText(Text):
    """SigLIP's text tower. It attends in both directions, and the embedding is read at the last token, which may be
    padding."""

    hidden_act: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    vocab_size: Annotated[int, Field(ge=1, le=1 << 22)] = 32_000
    max_position_embeddings: Positions = 64
    projection_size: Size | None = None
    """None: `hidden_size`."""


class SiglipVision(Vision):
    """SigLIP's vision tower. Attention pooling computes the embedding."""

    hidden_act: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    patch_size: Size = 16
    vision_use_head: Literal[True] = True


class ClipConfig(_Config):
    """The config.json of a CLIPModel."""

    model_type: Literal["clip"] = "clip"
    text_config: ClipText = Field(default_factory=ClipText)
    vision_config: ClipVision = Field(default_factory=ClipVision)
    projection_dim: Size = 512

    @property
    def embedding_dim(self) -> int:
        """Number of dimensions of an embedding."""
        return self.projection_dim


class SiglipConfig(_Config):
    """The config.json of a SiglipModel."""

    model_type: Literal["siglip"] = "siglip"
    text_config: SiglipText = Field(default_factory=SiglipText)
    vision_config: SiglipVision = Field(default_factory=SiglipVision)

    @property
    def embedding_dim(self) -> int:
        """Number of dimensions of an embedding."""
        return self.vision_config.hidden_size

    @model_validator(mode="after")
    def _sides_meet(self) -> Self:
        if (self.text_config.projection_size or self.text_config.hidden_size) != self.embedding_dim:
            raise ValueError("the embeddings of captions and pictures differ in size")
        return self


Config = ClipConfig | SiglipConfig
_KINDS: dict[str, type[ClipConfig] | type[SiglipConfig]] = {"clip": ClipConfig, "siglip": SiglipConfig}


def read_config(path: Path) -> Config:
    """The configuration in a config.json. Raises ModelError for anything but a CLIP or SigLIP model."""
    values = read_json(path)
    kind = _KINDS.get(str(values.get("model_type")))
    if kind is None:
        found = clean_text(str(values.get("model_type")))
        raise ModelError(
            f"{path}: the model has type {found!r}; in this layout, pairmill loads only {' and '.join(_KINDS)}"
        )
    for side in ("text_config", "vision_config"):
        parts = [part for name in (side, f"{side}_dict") if isinstance(part := values.get(name), dict)]
        # As in transformers, the older name wins.
        values[side] = {key: value for part in parts for key, value in part.items()}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ModelError(f"{path}: {first_problem(error)}") from None


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file. Raises ModelError if the file is too large or does not contain an object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path} is larger than {MAX_JSON_BYTES:,} bytes")
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} is not a JSON object")
    return values


def first_problem(error: ValidationError) -> str:
    """The location and the description of the first mistake, on one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    is_value = not isinstance(first["input"], dict | list | _Config)
    return f"{where or 'it'}: {first['msg']}" + (f", not {clean_text(repr(first['input']), 60)}" if is_value else "")
