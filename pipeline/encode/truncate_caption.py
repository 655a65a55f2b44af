"""Truncates captions to the context of a model, which is often 77 tokens. No other module does this.

Only the input of the model is truncated. The columns `caption` and `caption_clean` stay whole, except that a caption
rejected for its length is cut to 8,192 bytes (`source/rows.py`).

Tokenizers process the whole caption and then discard the part that does not fit. So a caption much longer than the
context is first cut to a prefix that still fills the context.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.encode.byte_pairs import MAX_CACHED_CHARS, merged

if TYPE_CHECKING:
    import torch

Counts = npt.NDArray[np.int32]

MAX_TOKEN_BYTES = 32
"""Length of the longest token in CLIP's vocabulary. A prefix with this many bytes per token nearly always fills the
context. If it does not, a longer prefix is tokenized."""
_MORE = 4


class CaptionTokenizer:
    """A model's tokenizer, which processes only about as much of a caption as fits into the context."""

    def __init__(self, tokenize: "Callable[[list[str]], torch.Tensor]", context_length: int) -> None:
        if hasattr(tokenize, "bpe_ranks"):
            _merge_long_words_fast(tokenize)
        self.tokenize = tokenize
        self.context_length = context_length
        self._is_left = bool(getattr(tokenize, "is_left", False))
        empty, whole = tokenize([""])[0], tokenize(["a " * 2 * context_length])[0]
        self._padding = int(empty[0 if self._is_left else -1])
        # The place of padding that a full context replaces. SigLIP's padding is its end-of-text token.
        self._last = 0 if self._is_left else -1 if int(whole[-1]) != self._padding else -2

    def __call__(self, captions: Sequence[str]) -> "torch.Tensor":
        """Captions -> int64 [n, context_length]. Longer captions are truncated, and shorter ones are padded."""
        num_bytes = MAX_TOKEN_BYTES * (self.context_length + 1)
        tokens = self.tokenize([beginning(caption, num_bytes) for caption in captions])
        waiting = [row for row, caption in enumerate(captions) if len(caption.encode()) > num_bytes]
        while waiting := [row for row in waiting if int(tokens[row, self._last]) == self._padding]:
            num_bytes *= _MORE
            tokens[waiting] = self.tokenize([beginning(captions[row], num_bytes) for row in waiting])
            waiting = [row for row in waiting if len(captions[row].encode()) > num_bytes]
        return tokens

    def lengths(self, captions: Sequence[str]) -> tuple[Counts, npt.NDArray[np.bool_]]:
        """(number of tokens in the context without padding, whether they fill the context), both [n]."""
        tokens = self(captions).numpy()
        if self._is_left:  # the end-of-text token comes last, even if it equals the padding
            is_token = tokens != self._padding
            is_token[:, -1] = True
            counts = (self.context_length - is_token.argmax(axis=1)).astype(np.int32)
            return counts, counts == self.context_length
        is_token = np.cumsum((tokens != self._padding)[:, ::-1], axis=1)[:, ::-1] > 0  # True up to the last token
        counts = is_token.sum(axis=1).astype(np.int32)
        if self._last == -2:
            counts = np.minimum(counts + 1, self.context_length).astype(np.int32)  # the last token looks like padding
        return counts, counts == self.context_length


def beginning(text: str, num_bytes: int) -> str:
    """The text, or its first `num_bytes` bytes in UTF-8, cut at the last whitespace in their second half, if any."""
    raw = text.encode()
    if len(raw) <= num_bytes:
        return text
    start = raw[:num_bytes].decode(errors="ignore")
    space = max(start.rfind(" "), start.rfind("\n"))
    return start[:space] if space >= len(start) // 2 else start


def _merge_long_words_fast(tokenize: Any) -> None:
    """For long words, replace the byte-pair merging of open_clip's own tokenizer, which takes quadratic time and keeps
    its results in the cache forever."""
    short = tokenize.bpe

    def bpe(word: str) -> str:
        return short(word) if len(word) <= MAX_CACHED_CHARS else " ".join(merged(word, tokenize.bpe_ranks))

    tokenize.bpe = bpe
