"""Makes small CLIP and SigLIP checkpoints with transformers itself: seeded random weights and tokenizers with few
tokens."""

import io
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import open_clip
import sentencepiece
import torch
import transformers

SIDE = 33
"""Side in pixels of the pictures that the models read; odd, so that crops are uneven."""
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SENTENCES = [f"a photo of {n} {what} on the {where}" for n in range(30) for what in ("dogs", "cats", "red cars")
             for where in ("table", "street", "beach")]  # fmt: skip


def _quietly() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def clip_tokenizer() -> Any:
    """CLIP's tokenizer with its first 1,500 merges."""
    merges = [(one, other) for one, other in list(open_clip.tokenizer._tokenizer.bpe_ranks)[:1500]]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), BOS, EOS]
    return transformers.CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=merges)


def save_clip(folder: Path, act: str = "quick_gelu", projection: int = 24, eos: int | None = None) -> Any:
    """Save a CLIPModel with its tokenizer and processor. `eos`: the number in config.json; None: the tokenizer's."""
    _quietly()
    tokenizer = clip_tokenizer()
    sides = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": act}
    text = {"hidden_size": 32, "intermediate_size": 61, "max_position_embeddings": 20, "vocab_size": len(tokenizer)}
    vision = {"hidden_size": 48, "intermediate_size": 96, "image_size": SIDE, "patch_size": 8}
    config = transformers.CLIPConfig(
        text_config={**sides, **text, "eos_token_id": tokenizer.eos_token_id if eos is None else eos},
        vision_config={**sides, **vision},
        projection_dim=projection,
    )
    size = {"height": SIDE, "width": SIDE}
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
    return _save(folder, transformers.CLIPModel(config), tokenizer, processor)


def save_siglip(folder: Path, act: str = "gelu_pytorch_tanh", width: int = 48) -> Any:
    """Save a SiglipModel with its tokenizer and processor. Its text tower can be narrower than its embeddings."""
    _quietly()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=60, minloglevel=2, pad_id=-1, bos_id=-1,
        eos_id=1, unk_id=2, hard_vocab_limit=False, num_threads=1, normalization_rule_name="nmt_nfkc",
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    sides = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": act}
    text = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": 100}
    vision = {"hidden_size": width, "intermediate_size": 100, "image_size": SIDE, "patch_size": 8}
    config = transformers.SiglipConfig(
        text_config={**sides, **text, "projection_size": width}, vision_config={**sides, **vision}
    )
    processor = transformers.SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return _save(folder, transformers.SiglipModel(config), siglip_tokenizer(folder), processor)


def siglip_tokenizer(folder: Path) -> Any:
    """transformers' own tokenizer for the folder's spiece.model."""
    return transformers.SiglipTokenizer(vocab_file=str(folder / "spiece.model"))


def _save(folder: Path, model: Any, *parts: Any) -> Any:
    torch.manual_seed(7)
    with torch.no_grad():
        for name, values in model.named_parameters():
            values.copy_(torch.randn(values.shape) * 0.2 if "logit" not in name else torch.full(values.shape, 2.0))
    model.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return model.eval()


def files_of(folder: Path) -> Iterable[str]:
    """The names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())
