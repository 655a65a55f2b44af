"""Turns captions into the same token ids as transformers' own tokenizers, padded to the model's context.

Control tokens in a caption, such as `<|endoftext|>`, are treated as text, so they cannot end the caption (transformers'
`split_special_tokens=True`).
"""

import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import sentencepiece
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from pairmill.pipeline.encode.model_error import ModelError
from pairmill.pipeline.encode.transformers_layout.checkpoint import Checkpoint
from pairmill.pipeline.encode.transformers_layout.config import EOS_BEFORE_4_32, ClipConfig, read_json

if TYPE_CHECKING:
    import torch

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""CLIP's pattern for words: https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py"""

_SPACE = "▁"
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)

Ids = list[int]


class FolderTokenizer:
    """The tokenizer in a checkpoint's folder: captions -> int64 [n, context_length]."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load the tokenizer. Raises ModelError if its files are broken or do not belong to the model."""
        settings = _settings(checkpoint)
        text = checkpoint.config.text_config
        self.context_length = text.max_position_embeddings
        try:
            self._encoder = _open(checkpoint, settings)
        except ModelError:
            raise
        except Exception as error:  # the libraries raise plain Exceptions
            what = " ".join(str(error).split())
            raise ModelError(f"{checkpoint.tokenizer[0]}: the tokenizer does not load: {what}") from error
        self.is_left = settings.get("padding_side") == "left"
        """Whether the padding comes before the caption."""
        if self._encoder.largest_id >= text.vocab_size:
            raise ModelError(
                f"{checkpoint.tokenizer[0]} has the token {self._encoder.largest_id:,}, but the model in config.json "
                f"has a vocabulary of {text.vocab_size:,}: the tokenizer belongs to another model"
            )
        _check_end(checkpoint, *self._encoder.encode(["a"]))

    def __call__(self, captions: Sequence[str]) -> "torch.Tensor":
        """Captions -> int64 [n, context_length]. Longer captions keep their first tokens and the end-of-text token."""
        import torch  # takes seconds, and checking a tokenizer does not need it

        tokens = torch.full((len(captions), self.context_length), self._encoder.pad_id)
        for row, ids in zip(tokens, self._encoder.encode(captions), strict=True):
            start = self.context_length - len(ids) if self.is_left else 0
            row[start : start + len(ids)] = torch.tensor(ids)
        return tokens


class _Encoder(Protocol):
    pad_id: int
    largest_id: int

    def encode(self, captions: Sequence[str]) -> list[Ids]:
        """The ids of each caption, truncated to the context, including the end-of-text token."""


class _Fast:
    """A tokenizer of the tokenizers library."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, pad: str, length: int, prepare: Callable[[str], str]) -> None:
        if (pad_id := tokenizer.token_to_id(pad)) is None:
            raise ValueError(f"it has no padding token {pad!r}")
        tokenizer.no_padding()
        tokenizer.enable_truncation(length)
        tokenizer.encode_special_tokens = True
        self.pad_id: int = pad_id
        self.largest_id: int = max(tokenizer.get_vocab(with_added_tokens=True).values())
        self._tokenizer, self._prepare = tokenizer, prepare

    def encode(self, captions: Sequence[str]) -> list[Ids]:
        """See `_Encoder.encode`."""
        return [found.ids for found in self._tokenizer.encode_batch([self._prepare(caption) for caption in captions])]


class _SentencePiece:
    """A SentencePiece model, used as in transformers' SiglipTokenizer."""

    def __init__(self, model: bytes, length: int, eos: str, pad: str, unknown: str) -> None:
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._eos_id, self.pad_id = self._model.piece_to_id(eos), self._model.piece_to_id(pad)
        if self._model.unk_id() in (self._eos_id, self.pad_id):
            raise ValueError(f"it lacks {eos} or {pad}")
        self.largest_id = self._model.get_piece_size() - 1
        self._before, self._length = unknown, length
        self._num_before = len(self._model.encode(unknown))

    def encode(self, captions: Sequence[str]) -> list[Ids]:
        """See `_Encoder.encode`. Each text is placed after an unknown token, which keeps the space before its first
        word."""
        texts = [self._before + canonical(_SPACE + caption.replace(_SPACE, " ")) for caption in captions]
        return [[*ids[self._num_before :][: self._length - 1], self._eos_id] for ids in self._model.encode(texts)]


def canonical(text: str) -> str:
    """The text in lower case, without ASCII punctuation and with single spaces, as in SigLIP's training
    (https://github.com/google-research/big_vision, prompt_engineering.py, as in transformers 5.24)."""
    return re.sub(r"\s+", " ", text.lower().translate(_WITHOUT_PUNCTUATION)).strip()


def _open(checkpoint: Checkpoint, settings: dict[str, object]) -> _Encoder:
    first, length = checkpoint.tokenizer[0], checkpoint.config.text_config.max_position_embeddings
    if isinstance(checkpoint.config, ClipConfig):
        tokenizer = _clip_tokenizer(*checkpoint.tokenizer) if first.name == "vocab.json" else _read(first)
        return _Fast(tokenizer, _token(settings, "pad_token", _EOS), length, str)
    if first.name == "spiece.model":
        tokens = (_token(settings, name, default) for name, default in _SIGLIP_TOKENS.items())
        encoder = _SentencePiece(first.read_bytes(), length, *tokens)
        _check_no_added(checkpoint, settings, encoder.largest_id)
        return encoder
    if str(settings.get("tokenizer_class")).startswith(("Gemma", "Siglip2")):  # SigLIP 2 was trained on lower case
        return _Fast(_read(first), _token(settings, "pad_token", "<pad>"), length, str.lower)
    return _Fast(_read(first), _token(settings, "pad_token", "</s>"), length, canonical)


def _check_no_added(checkpoint: Checkpoint, settings: dict[str, object], largest_id: int) -> None:
    """Raise ModelError if tokens were added to a SentencePiece model, which does not know them."""
    added, old = settings.get("added_tokens_decoder"), checkpoint.folder / "added_tokens.json"
    ids = [*(added if isinstance(added, dict) else ()), *(read_json(old).values() if old.is_file() else ())]
    if any(str(number).isdecimal() and int(str(number)) > largest_id for number in ids):
        raise ModelError(
            f"{checkpoint.tokenizer[0]} lacks tokens that were added to the tokenizer; delete it if the folder has a "
            "tokenizer.json with them"
        )


_SIGLIP_TOKENS = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}


def _read(path: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(path))


def _clip_tokenizer(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    """CLIP's tokenizer, made from its vocabulary and merges as in transformers' CLIPTokenizer."""
    model = models.BPE.from_file(str(vocab), str(merges), unk_token=_EOS, end_of_word_suffix="</w>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    eos_id, bos_id = tokenizer.token_to_id(_EOS), tokenizer.token_to_id(_BOS)
    if eos_id is None or bos_id is None:
        raise ValueError(f"its vocabulary lacks {_BOS} or {_EOS}")
    ends = processors.RobertaProcessing((_EOS, eos_id), (_BOS, bos_id), trim_offsets=False, add_prefix_space=False)
    tokenizer.post_processor = ends
    return tokenizer


def _settings(checkpoint: Checkpoint) -> dict[str, object]:
    """The settings in special_tokens_map.json and tokenizer_config.json, if they exist. The latter takes precedence."""
    paths = [checkpoint.folder / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    return {key: value for path in paths if path.is_file() for key, value in read_json(path).items()}


def _token(settings: dict[str, object], name: str, default: str) -> str:
    """The text of a special token. The setting is either the text or an object with a field `content`."""
    value = settings.get(name)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else default


def _check_end(checkpoint: Checkpoint, ids: Ids) -> None:
    """Raise ModelError if captions do not end with the token at which the model reads their embeddings."""
    config = checkpoint.config
    if not isinstance(config, ClipConfig):
        return
    eos = config.text_config.eos_token_id
    if ids.index(max(ids)) != len(ids) - 1 if eos == EOS_BEFORE_4_32 else ids[-1] != eos:
        raise ModelError(
            f"{checkpoint.tokenizer[0]} does not end captions with the token {eos}, which config.json gives as "
            "eos_token_id: the tokenizer belongs to another model"
        )
