"""Counts the tokens of captions for a model. The model sees only as many tokens as fit into its context."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.encode.truncate_caption import CaptionTokenizer, Counts
from pairmill.pipeline.encode.weights import find_weights
from pairmill.schemas.job.models import ModelConfig

_MAX_CACHED = 200_000
"""Maximum number of words whose token counts are cached, which takes about 20 MB."""


class TokenCounter:
    """Counts tokens, including the tokens for start and end. Not thread-safe.

    With CLIP's own tokenizer, all tokens of a caption are counted; with others, only the tokens in the context.
    """

    def __init__(self, tokenize: Any, context_length: int) -> None:
        self._limited = CaptionTokenizer(tokenize, context_length)
        self._encode = tokenize.encode if hasattr(tokenize, "bpe_ranks") else None
        self.context_length = context_length
        self._known: dict[str, int] = {}

    def __call__(self, captions: Sequence[str]) -> tuple[Counts, npt.NDArray[np.bool_]]:
        """(number of tokens, whether the model sees only part of the caption), both [captions]."""
        if self._encode is None:
            return self._limited.lengths(captions)
        counts = np.array([2 + self._count(caption) for caption in captions], np.int32)
        return counts, counts > self.context_length

    def _count(self, caption: str) -> int:
        """The number of tokens. Words are counted separately only if they are plain ASCII, because open_clip repairs
        other text as a whole before splitting it into words."""
        if not caption.isascii() or "&" in caption:
            return self._count_text(caption)
        known = self._known
        try:
            return sum([known[word] for word in caption.split(" ")])
        except KeyError:
            return sum(self._count_word(word) for word in caption.split(" "))

    def _count_word(self, word: str) -> int:
        if word not in self._known:
            if len(self._known) >= _MAX_CACHED:
                self._known.clear()
            self._known[word] = self._count_text(word)
        return self._known[word]

    def _count_text(self, text: str) -> int:
        assert self._encode is not None
        return len(self._encode(text))


def token_counter(model: ModelConfig | None) -> TokenCounter:
    """A counter with the tokenizer of a model, or with CLIP's own. Raises ModelError if the model is not available."""
    import open_clip

    if model is None:
        return TokenCounter(open_clip.SimpleTokenizer(), 77)
    from pairmill.pipeline.encode.transformers_layout.tokenizer import FolderTokenizer

    weights = find_weights(model)
    tokenize = FolderTokenizer(weights.checkpoint) if weights.checkpoint else open_clip.get_tokenizer(weights.name)
    return TokenCounter(tokenize, int(tokenize.context_length))
