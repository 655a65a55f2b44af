"""Maps the names of a checkpoint's tensors to the names of the architecture's tensors.

Sources are the names in transformers' CLIPModel and SiglipModel. Targets are the names in open_clip's VisionTransformer
and TextTransformer and, for SigLIP's pictures, in timm's VisionTransformer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pairmill.pipeline.encode.transformers_layout.config import ClipConfig, Config, SiglipConfig

_PARTS = ("weight", "bias")
_OPEN_CLIP_LAYER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_TIMM_LAYER = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors of the checkpoint that become one tensor of the architecture."""

    names: tuple[str, ...]
    """Names of the checkpoint's tensors. Several tensors are stacked along their first dimension."""
    is_transposed: bool = False
    rows: tuple[int, int] | None = None
    """If set, only this range of thirds of a single tensor is used: (0, 1) is the query, (1, 3) is key and value."""


Sources = dict[str, Source]


def sources(config: Config) -> Sources:
    """Name of each tensor of the architecture -> its source."""
    named = _clip(config) if isinstance(config, ClipConfig) else _siglip(config)
    return {target: Source((source,)) if isinstance(source, str) else source for target, source in named.items()}


def is_ignored(name: str) -> bool:
    """Whether a tensor of the checkpoint only counts positions. Older versions of transformers stored such tensors."""
    return name.endswith(".position_ids")


Named = dict[str, str | Source]


def _clip(config: ClipConfig) -> Named:
    embeddings = "vision_model.embeddings"
    return {
        "logit_scale": "logit_scale",
        "visual.class_embedding": f"{embeddings}.class_embedding",
        "visual.conv1.weight": f"{embeddings}.patch_embedding.weight",
        "visual.positional_embedding": f"{embeddings}.position_embedding.weight",
        **_same({"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm"}),
        **_open_clip_layers("visual", "vision_model", config.vision_config.num_hidden_layers),
        "visual.proj": Source(("visual_projection.weight",), is_transposed=True),
        **_text(config.text_config.num_hidden_layers),
        "text.text_projection": Source(("text_projection.weight",), is_transposed=True),
    }


def _siglip(config: SiglipConfig) -> Named:
    embeddings, head = "vision_model.embeddings", "vision_model.head"
    named: Named = {
        "logit_scale": "logit_scale",
        "logit_bias": "logit_bias",
        "visual.pos_embed": f"{embeddings}.position_embedding.weight",
        **_same({"visual.patch_embed.proj": f"{embeddings}.patch_embedding"}),
        **_same({"visual.norm": "vision_model.post_layernorm"}),
        "visual.attn_pool.latent": f"{head}.probe",
        **_same({"visual.attn_pool.proj": f"{head}.attention.out_proj", "visual.attn_pool.norm": f"{head}.layernorm"}),
        **_same({f"visual.attn_pool.mlp.fc{n}": f"{head}.mlp.fc{n}" for n in (1, 2)}),
        **_text(config.text_config.num_hidden_layers),
        **_same({"text.text_projection": "text_model.head"}),
    }
    for part in _PARTS:
        stacked = (f"{head}.attention.in_proj_{part}",)
        named[f"visual.attn_pool.q.{part}"] = Source(stacked, rows=(0, 1))
        named[f"visual.attn_pool.kv.{part}"] = Source(stacked, rows=(1, 3))
    for n in range(config.vision_config.num_hidden_layers):
        target, source = f"visual.blocks.{n}", f"vision_model.encoder.layers.{n}"
        named |= _same({f"{target}.{ours}": f"{source}.{theirs}" for ours, theirs in _TIMM_LAYER.items()})
        named |= _same({f"{target}.attn.proj": f"{source}.self_attn.out_proj"})
        named |= {f"{target}.attn.qkv.{part}": _stacked(source, part) for part in _PARTS}
    return named


def _text(layers: int) -> Named:
    return {
        "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
        **_open_clip_layers("text", "text_model", layers),
        **_same({"text.ln_final": "text_model.final_layer_norm"}),
    }


def _open_clip_layers(target: str, source: str, layers: int) -> Named:
    named: Named = {}
    for n in range(layers):
        ours, theirs = f"{target}.transformer.resblocks.{n}", f"{source}.encoder.layers.{n}"
        named |= _same({f"{ours}.{mine}": f"{theirs}.{their}" for mine, their in _OPEN_CLIP_LAYER.items()})
        named |= _same({f"{ours}.attn.out_proj": f"{theirs}.self_attn.out_proj"})
        named |= {f"{ours}.attn.in_proj_{part}": _stacked(theirs, part) for part in _PARTS}
    return named


def _stacked(layer: str, part: str) -> Source:
    return Source(tuple(f"{layer}.self_attn.{kind}_proj.{part}" for kind in "qkv"))


def _same(modules: Mapping[str, str]) -> Named:
    """Target -> source of the weight and the bias of modules that differ only in name."""
    return {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in modules.items() for part in _PARTS}
