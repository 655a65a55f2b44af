"""Runs CLIP models: pixels and captions in, L2-normalized embeddings out. No other module does this.

A similarity is the cosine of two of these embeddings in float32 (Radford et al. 2021,
https://arxiv.org/abs/2103.00020); `embedding_columns.py` computes it.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.common.hooks import NO_HOOKS, WorkerHooks
from pairmill.pipeline.encode.device import dtype_on, resolve_device
from pairmill.pipeline.encode.model_error import ModelError
from pairmill.pipeline.encode.truncate_caption import CaptionTokenizer
from pairmill.pipeline.encode.weights import find_weights
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig

if TYPE_CHECKING:
    import torch

_BATCH_SIZES = {"cpu": 32, "cuda": 256}
"""Default batch sizes. On a CPU, larger batches gain nothing. When a GPU runs out of memory, the size is halved."""

_PROBES = ("", "a photo", "red", "42")
"""Captions that each model embeds after loading, to check that its embeddings are valid."""

_UNIT_TOLERANCE = 0.01

Floats = npt.NDArray[np.float32]


class ClipModel:
    """One model, ready to encode on one device. Thread-safe: the model processes one batch at a time.

    `logit_scale` and `logit_bias` turn a similarity into the logit with which the model was trained, `logit_scale *
    similarity + logit_bias`. It is the logit of a sigmoid if `is_sigmoid` (SigLIP, Zhai et al. 2023,
    https://arxiv.org/abs/2303.15343), otherwise of a softmax over captions (CLIP; no bias). The scale is the
    factor itself, not its logarithm: 100 for OpenAI's models.
    """

    def __init__(self, config: ModelConfig, run: RunConfig, hooks: WorkerHooks = NO_HOOKS) -> None:
        """Load the model. Raises ModelError if it cannot be loaded."""
        import torch  # takes 4 s with open_clip, so only workers that encode import it

        from pairmill.pipeline.encode.load_model import load
        from pairmill.pipeline.encode.model_input import ModelInput
        from pairmill.pipeline.encode.text_tower import TextTower

        self._torch, self._hooks = torch, hooks
        self._model_lock, self._tokenizer_lock = threading.Lock(), threading.Lock()
        self.alias = config.alias
        self.device = resolve_device(run)
        self.batch_size = run.batch_size or _BATCH_SIZES[self.device]
        dtype = dtype_on(config, self.device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        weights = find_weights(config)
        loaded = load(config, weights, self.device, self._dtype)
        self._model = loaded.model
        self._tokenizer = CaptionTokenizer(loaded.tokenize, int(loaded.tokenize.context_length))
        self.logit_scale, self.logit_bias = loaded.logit_scale, loaded.logit_bias
        self.is_sigmoid = loaded.logit_bias is not None
        self.input = ModelInput(loaded.recipe)
        self._text = TextTower(self._model)
        self.contract = ScoreContract(
            alias=config.alias,
            name=config.name,
            pretrained=config.pretrained,
            weights_sha256=weights.sha256(),
            preprocessing=loaded.preprocessing,
            dtype=dtype,
            context_length=self._tokenizer.context_length,
            quick_gelu=config.quick_gelu,
        )
        captions = self.encode_captions(_PROBES)
        self.embedding_dim = int(captions.shape[1])
        gray = self.encode_images(torch.stack([self.input.prepare(np.full((64, 64, 3), 128, np.uint8))]))
        for embeddings, kind in ((captions, "captions"), (gray, "pictures")):
            if not is_unit(embeddings).any():
                raise self.broken(kind)

    def broken(self, kind: str) -> ModelError:
        """The error for a model whose embeddings are all invalid. `kind`: `captions` or `pictures`."""
        is_reduced = self._dtype != self._torch.float32
        or_narrow = f", or {self._dtype} is not precise enough for it; try dtype: float32" if is_reduced else ""
        return ModelError(
            f"model {self.alias!r} produces no valid embeddings of {kind} (all are NaN, infinite or zero): its weights "
            f"are broken{or_narrow}"
        )

    def encode_images(self, inputs: "torch.Tensor") -> Floats:
        """Inputs from `self.input`, uint8 [n, 3, side, side] -> float32 [n, dim], L2-normalized."""
        if self.device == "cuda":
            inputs = inputs.pin_memory()  # so that copying overlaps with the previous batch

        def embed(part: "torch.Tensor") -> "torch.Tensor":
            ready = self.input.normalize(part.to(self.device, non_blocking=True), self._dtype)  # [b, 3, side, side]
            return self._model.encode_image(ready)  # type: ignore[no-any-return]

        return self._in_batches(inputs, embed)  # [n, dim]

    def encode_captions(self, captions: Sequence[str]) -> Floats:
        """Captions, truncated to the model's context -> float32 [n, dim], L2-normalized."""
        if not captions:
            return np.empty((0, self.embedding_dim), np.float32)
        with self._tokenizer_lock:  # Hugging Face's tokenizers do not allow concurrent calls
            tokens = self._tokenizer(captions)  # [n, context_length]
        lengths = self._text.lengths(tokens)  # [n]
        order = lengths.argsort()  # by length, because the longest caption determines the time of a batch
        tokens, lengths = tokens[order], lengths[order]

        def embed(part: "torch.Tensor") -> "torch.Tensor":
            return self._text(part.to(self.device))

        parts, size = [], self.batch_size  # the size may be halved along the way
        for start in range(0, len(tokens), size):
            end = start + size
            parts.append(self._in_batches(tokens[start:end, : int(lengths[start:end].max())], embed))
        embeddings = np.empty((len(tokens), parts[0].shape[1]), np.float32)
        embeddings[order.numpy()] = np.concatenate(parts)
        return embeddings  # [n, dim]

    def _in_batches(self, inputs: "torch.Tensor", embed: "Callable[[torch.Tensor], torch.Tensor]") -> Floats:
        """Embed at most `batch_size` inputs at a time. Halve `batch_size` for good if the device runs out of memory."""
        torch, parts, start = self._torch, [], 0
        is_reduced = self._dtype != torch.float32
        # Some of open_clip's attention masks stay float32 in any precision (CoCa's, in 3.3). Autocast converts them.
        with torch.inference_mode(), torch.autocast(self.device, self._dtype, enabled=is_reduced):
            while start < len(inputs):
                part = inputs[start : start + self.batch_size]
                try:
                    with self._model_lock, self._hooks.timed("encode_batch"):
                        found = torch.nn.functional.normalize(embed(part).float(), dim=-1)  # float32 [b, dim]
                        parts.append(found.cpu())
                except torch.OutOfMemoryError:
                    if self.batch_size == 1:
                        raise
                    self.batch_size = max(1, min(self.batch_size, len(part)) // 2)
                    torch.cuda.empty_cache()
                    continue
                start += len(part)
        return torch.cat(parts).numpy()  # type: ignore[no-any-return]


def is_unit(embeddings: Floats) -> npt.NDArray[np.bool_]:
    """For each embedding, whether it has length 1. False if it was NaN, infinite or zero before normalization."""
    with np.errstate(invalid="ignore"):
        result: npt.NDArray[np.bool_] = np.abs(np.linalg.norm(embeddings, axis=1) - 1) < _UNIT_TOLERANCE
    return result


@functools.lru_cache(maxsize=4)
def load_model(config: ModelConfig, run: RunConfig, hooks: WorkerHooks = NO_HOOKS) -> ClipModel:
    """A model, loaded once per process. Raises ModelError."""
    return ClipModel(config, run, hooks)


def model_of(contract: ScoreContract, run: RunConfig) -> ClipModel:
    """The model that made the stored embeddings, loaded once per process.

    Raises ModelError if its weights cannot be found or are not those that were used.
    """
    names = ("name", "pretrained", "alias", "quick_gelu")
    config = ModelConfig(**{name: getattr(contract, name) for name in names})
    weights = find_weights(config)
    if weights.sha256() != contract.weights_sha256:
        raise ModelError(
            f"{weights.path} is not the model {contract.alias!r} that the dataset was embedded with: the SHA-256 of "
            f"its weights should be {contract.weights_sha256}"
        )
    return load_model(config, run)
