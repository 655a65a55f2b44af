"""Runs captions through a text tower, without padding if that does not change the result.

CLIP pads every caption to 77 tokens, but web captions have only about 15. If attention is causal and the embedding is
read at the last real token, the padding after it has no effect, so a batch is trimmed to its longest caption. This is
the case for OpenAI's architecture and its variants. SigLIP (attends in both directions), CoCa (reads an extra token at
the very end) and Hugging Face towers get all tokens.
"""

from typing import Any

import torch
from torch.func import functional_call


class TextTower:
    """The text side of an open_clip model: tokens [n, context] -> embeddings [n, dim], not yet normalized."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tower = getattr(model, "text", model)  # CLIP itself is the text tower of the older layout
        self.is_trimmed = _is_causal(self._tower)

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """The number of tokens of each caption that can affect the result: [n, context] -> [n]."""
        if not self.is_trimmed:
            return torch.full((len(tokens),), tokens.shape[1])
        eos = getattr(self._tower, "eos_id", getattr(self._tower, "text_eos_id", None))
        pool = getattr(self._tower, "pool_type", getattr(self._tower, "text_pool_type", None))
        last = tokens.argmax(dim=1) if pool == "argmax" else (tokens == int(eos or 0)).int().argmax(dim=1)
        return last + 1

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [n, length] -> float32 [n, dim]. `length` is the context, or at least `lengths(tokens).max()`."""
        length = tokens.shape[1]
        if not self.is_trimmed or length == self._tower.attn_mask.shape[0]:
            return self._model.encode_text(tokens).float()  # type: ignore[no-any-return]
        swapped = {
            "attn_mask": self._tower.attn_mask[:length, :length],
            "positional_embedding": self._tower.positional_embedding[:length],
        }
        if self._tower is not self._model:
            found = functional_call(self._tower, swapped, (tokens,))
            return (found[0] if isinstance(found, tuple) else found).float()  # type: ignore[no-any-return]
        found = functional_call(self._model, swapped, kwargs={"text": tokens})
        return (found["text_features"] if isinstance(found, dict) else found[1]).float()  # type: ignore[no-any-return]


def _is_causal(tower: Any) -> bool:
    """Whether the mask is causal, the embedding is read at the end-of-text token, and nothing follows the caption."""
    mask = getattr(tower, "attn_mask", None)
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    if mask is None or mask.ndim != 2 or pool not in ("argmax", "eos"):
        return False
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        return False
    ahead = torch.triu(torch.ones_like(mask, dtype=torch.bool), diagonal=1)
    return bool(torch.isneginf(mask[ahead]).all()) and hasattr(tower, "positional_embedding")
