"""Writes captions for pictures with a CoCa model (Yu et al. 2022, https://arxiv.org/abs/2205.01917).

The captions are the same as those of open_clip's `generate(generation_type="top_k", top_k=1)`, which always chooses the
most probable token. That function needs parts of transformers that version 5 no longer has.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from pairmill.pipeline.encode.clip_model import ClipModel
from pairmill.pipeline.encode.weights import ModelError
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig

if TYPE_CHECKING:
    import torch

_MIN_TOKENS = 5
"""Minimum number of tokens in a caption, as in open_clip."""
_ROWS = {"cpu": 1, "cuda": 64}
"""Number of pictures in every batch. In a batch of another size, sums are rounded differently, which can change the
choice between two almost equally probable tokens. With a fixed size, a caption depends only on its picture."""


class CocaModel(ClipModel):
    """An open_clip model that writes captions."""

    def __init__(self, config: ModelConfig, run: RunConfig, max_tokens: int) -> None:
        """Load the model. `max_tokens`: maximum length of a caption, including start and end. Raises ModelError if the
        model does not write captions."""
        super().__init__(config, run)
        tokenize: Any = self._tokenizer.tokenize
        if not hasattr(self._model, "text_decoder"):
            raise ModelError(f"{config.name!r} does not write captions; choose a CoCa model, such as coca_ViT-B-32")
        if not hasattr(tokenize, "bpe_ranks"):
            raise ModelError(f"{config.name!r} does not use CLIP's tokenizer; other tokenizers are not supported here")
        if max_tokens > self._model.context_length:
            raise ModelError(f"max_tokens: {config.name!r} has a context of only {self._model.context_length} tokens")
        self._decode = tokenize.decode
        self._start, self._end = int(tokenize.sot_token_id), int(tokenize.eot_token_id)
        self._padding = int(self._model.pad_id)
        self._max_tokens = max_tokens

    def write_captions(self, inputs: "torch.Tensor") -> list[str | None]:
        """Inputs from `self.input`, uint8 [n, 3, side, side] -> captions [n].

        A caption is None if the model outputs NaN or infinity.
        """
        texts: list[str | None] = []
        rows = _ROWS[self.device]
        for start in range(0, len(inputs), rows):
            part = inputs[start : start + rows]
            blank = part.new_zeros((rows - len(part), *part.shape[1:]))
            tokens, is_valid = self._tokens(self._torch.cat([part, blank]))
            written = zip(tokens[: len(part)].tolist(), is_valid[: len(part)].tolist(), strict=True)
            texts += [self._text_of(ids) if valid else None for ids, valid in written]
        return texts

    def _tokens(self, inputs: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """(start, text, end and padding, int64 [rows, <= max_tokens]; whether all logits were valid, bool [rows])."""
        torch = self._torch
        with torch.inference_mode(), self._model_lock:
            pictures = self.input.normalize(inputs.to(self.device), self._dtype)
            seen = self._model(pictures)
            tokens = torch.full((len(inputs), 1), self._start, device=self.device)
            is_valid = torch.ones(len(inputs), dtype=torch.bool, device=self.device)
            is_over = ~is_valid
            while tokens.shape[1] < self._max_tokens and not bool(is_over.all()):
                logits = self._model(
                    pictures,
                    tokens,
                    image_latent=seen["image_features"],
                    image_embs=seen["image_embs"],
                    output_labels=False,
                )["logits"][:, -1]  # [rows, vocabulary]
                is_valid &= torch.isfinite(logits).all(dim=1) | is_over
                if tokens.shape[1] < _MIN_TOKENS:
                    logits[:, self._end] = -np.inf
                chosen = logits.argmax(dim=1)
                if tokens.shape[1] + 1 == self._max_tokens:
                    chosen[:] = self._end
                chosen[is_over] = self._padding
                tokens = torch.cat([tokens, chosen[:, None]], dim=1)
                is_over |= (chosen == self._end) | (chosen == self._padding)
        return tokens, is_valid

    def _text_of(self, ids: list[int]) -> str:
        """The text before the first end or padding."""
        stops = [place for place, token in enumerate(ids) if token in (self._end, self._padding)]
        kept = ids[: stops[0]] if stops else ids
        return str(self._decode([token for token in kept if token != self._start]))
