"""THE place where a caption is cut: to MAX_TOKENIZED_BYTES, then to the model's context of 77 tokens or so.

Only what the model sees is cut; the columns `caption` and `caption_clean` stay whole.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MAX_TOKENIZED_BYTES = 1_000
"""77 tokens of 13 bytes. CLIP's byte-pair merging is quadratic in the length of a word, and a hostile caption may be
one word of a megabyte."""


class CaptionTokenizer:
    """open_clip's tokenizer of one model, with a bound on what it has to tokenize."""

    def __init__(self, tokenize: "Callable[[list[str]], torch.Tensor]", context_length: int) -> None:
        self._tokenize = tokenize
        self.context_length = context_length

    def __call__(self, captions: Sequence[str]) -> "torch.Tensor":
        """Captions -> int64 [n, context_length]: longer ones are cut, shorter ones padded."""
        return self._tokenize([_truncated(caption) for caption in captions])


def _truncated(caption: str) -> str:
    return caption.encode()[:MAX_TOKENIZED_BYTES].decode(errors="ignore")
