"""Makes a small CoCa model with random weights, in a folder that open_clip loads."""

import json
from pathlib import Path

import open_clip
import safetensors.torch
import torch

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "attn_pooler_heads": 2,
    },
    "custom_text": True,
}
END = 49407


def write_coca(folder: Path, seed: int = 0) -> Path:
    """Write a model whose captions differ between pictures and end after a few tokens or not at all. Returns its
    folder."""
    torch.manual_seed(seed)
    model = open_clip.CoCa(**{name: value for name, value in MODEL.items() if name != "custom_text"})
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, tensor in weights.items():
        if tensor.dtype == torch.float32 and tensor.ndim > 1:
            weights[name] = torch.randn(tensor.shape) * (0.3 if "embedding" in name else 1.5 / tensor.shape[-1] ** 0.5)
    weights["visual.attn_pool.query"] *= 8
    weights["text_decoder.text_projection"][:, END] *= 20
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": {}}))
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    return folder
