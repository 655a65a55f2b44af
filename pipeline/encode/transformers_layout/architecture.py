"""Builds a CLIP or SigLIP model for a checkpoint in transformers' layout from open_clip's and timm's modules."""

from collections.abc import Callable
from functools import partial

import torch
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer, VisionTransformer
from timm.models.vision_transformer import VisionTransformer as MapVisionTransformer
from torch import nn

from pairmill.pipeline.encode.transformers_layout.config import (
    EOS_BEFORE_4_32,
    ClipConfig,
    ClipVision,
    Config,
    SiglipConfig,
    SiglipVision,
    Tower,
)
from pairmill.pipeline.encode.transformers_layout.names import Source

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "quick_gelu": QuickGELU,
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
}


class TwoTowers(nn.Module):
    """Embeds pictures and captions, with the interface of open_clip's models."""

    def __init__(self, visual: nn.Module, text: nn.Module, has_bias: bool) -> None:
        super().__init__()
        self.visual, self.text = visual, text
        self.logit_scale = nn.Parameter(torch.zeros([]))
        self.logit_bias = nn.Parameter(torch.zeros([])) if has_bias else None

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Float [n, 3, side, side] -> [n, dim], not normalized."""
        return self.visual(image)  # type: ignore[no-any-return]

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        """int64 [n, context] -> [n, dim], not normalized."""
        return self.text(text)  # type: ignore[no-any-return]


def build(config: Config) -> TwoTowers:
    """The architecture on the device `meta`, without memory or values."""
    with torch.device("meta"):
        if isinstance(config, ClipConfig):
            return TwoTowers(_clip_visual(config), _text(config), has_bias=False)
        return TwoTowers(_siglip_visual(config.vision_config), _text(config), has_bias=True)


def fill(model: TwoTowers, tensors: dict[str, torch.Tensor]) -> None:
    """Set the values of all parameters. `tensors`: values by name, as in `model.state_dict()`."""
    model.load_state_dict(tensors, assign=True)
    if model.text.attn_mask is not None:
        model.text.attn_mask = model.text.build_causal_mask()  # type: ignore[operator]


def tensor_of(source: Source, tensors: dict[str, torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """A tensor of the architecture in float32. It has this shape if the checkpoint matches its config.json."""
    found = torch.cat([tensors[name] for name in source.names]) if len(source.names) > 1 else tensors[source.names[0]]
    if source.rows is not None:
        third = len(found) // 3
        found = found[source.rows[0] * third : source.rows[1] * third]
    if source.is_transposed:
        found = found.T
    if [side for side in found.shape if side > 1] == [side for side in shape if side > 1]:
        found = found.reshape(shape)  # scalars are stored as [] or [1], and timm's positions as [1, n, width]
    return found.float().contiguous()


def lower_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of matrix multiplications. Norms, embeddings and the scale stay in float32, as in open_clip."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
            module.to(dtype)
        for name in ("proj", "text_projection"):
            if isinstance(matrix := getattr(module, name, None), nn.Parameter):
                matrix.data = matrix.data.to(dtype)


def _clip_visual(config: ClipConfig) -> nn.Module:
    vision: ClipVision = config.vision_config
    return VisionTransformer(  # type: ignore[no-any-return]
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        output_dim=config.embedding_dim,
        **_layers(vision),
    )


def _siglip_visual(vision: SiglipVision) -> nn.Module:
    return MapVisionTransformer(
        img_size=vision.image_size,
        patch_size=vision.patch_size,
        num_classes=0,
        global_pool="map",
        class_token=False,
        embed_dim=vision.hidden_size,
        depth=vision.num_hidden_layers,
        num_heads=vision.num_attention_heads,
        mlp_ratio=_mlp_ratio(vision),
        norm_layer=partial(nn.LayerNorm, eps=vision.layer_norm_eps),
        act_layer=_ACTIVATIONS[vision.hidden_act],
    )


def _text(config: Config) -> nn.Module:
    text = config.text_config
    if isinstance(config, SiglipConfig):
        special: dict[str, object] = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    elif config.text_config.eos_token_id == EOS_BEFORE_4_32:
        special = {"pool_type": "argmax"}
    else:
        special = {"pool_type": "eos", "eos_id": config.text_config.eos_token_id}
    return TextTransformer(  # type: ignore[no-any-return]
        context_length=text.max_position_embeddings,
        vocab_size=text.vocab_size,
        output_dim=config.embedding_dim,
        **_layers(text),
        **special,
    )


def _layers(tower: Tower) -> dict[str, object]:
    """The arguments that open_clip's two towers have in common."""
    return {
        "width": tower.hidden_size,
        "layers": tower.num_hidden_layers,
        "heads": tower.num_attention_heads,
        "mlp_ratio": _mlp_ratio(tower),
        "act_layer": _ACTIVATIONS[tower.hidden_act],
        "norm_layer": partial(LayerNorm, eps=tower.layer_norm_eps),
    }


def _mlp_ratio(tower: Tower) -> float:
    """A ratio from which open_clip and timm compute `intermediate_size`, although they round down."""
    return (tower.intermediate_size + 0.5) / tower.hidden_size
