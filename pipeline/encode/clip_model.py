"""The place where open_clip is loaded and called: pixels and captions in, L2-normalised embeddings out.

Similarity is the cosine of the L2-normalised embeddings in float32, before they are rounded to float16 for storage
(Radford et al. 2021, https://arxiv.org/abs/2103.00020).
"""

import difflib
import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.common.hooks import NO_HOOKS, WorkerHooks
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.jobs import ModelConfig, RunConfig

if TYPE_CHECKING:
    import torch

TINY_FOLDER = Path(__file__).parent / "tiny"

MAX_CAPTION_BYTES = 1_000
"""Of a caption, only this much is tokenized: 77 tokens of 13 bytes. CLIP's byte-pair merging is quadratic in the length
of a word, and a hostile caption may be one word of a megabyte."""

_BATCH_SIZES = {"cpu": 32, "cuda": 256}
"""Where the job names none: on the CPU larger batches gain nothing, on a GPU they are halved where memory runs out."""

_WEIGHT_NAMES = (  # in open_clip's order of preference (open_clip/factory.py 3.3)
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
_COUNTED = 40
_PRECISION = {"float32": "fp32", "bfloat16": "bf16"}

Floats = npt.NDArray[np.float32]


class ModelError(PairmillError, ValueError):
    """A model or its weights cannot be had; the message says which and what to do."""


class ClipModel:
    """One open_clip model, ready to encode on one device."""

    def __init__(self, config: ModelConfig, run: RunConfig, hooks: WorkerHooks = NO_HOOKS) -> None:
        import open_clip  # with torch, 4 s: only who encodes pays for it
        import torch

        from pairmill.pipeline.encode.model_input import ModelInput
        from pairmill.pipeline.encode.text_tower import TextTower

        self._torch, self._hooks = torch, hooks
        self.alias = config.alias
        self.device = _device(run)
        self.batch_size = run.batch_size or _BATCH_SIZES[self.device]
        dtype = _dtype(config, self.device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        name, pretrained, weights = _locate(config)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="QuickGELU mismatch")
                self._model, recipe = open_clip.create_model_from_pretrained(
                    name, pretrained=pretrained, device=self.device, precision=_PRECISION[dtype]
                )
            self._tokenize = open_clip.get_tokenizer(name)
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"model {config.name!r} ({config.pretrained}) does not load: {error}") from error
        self._model.eval()
        self.input = ModelInput(recipe)
        self._text = TextTower(self._model)
        self.contract = ScoreContract(
            alias=config.alias,
            name=config.name,
            pretrained=config.pretrained,
            weights_sha256=_sha256(weights),
            preprocessing=open_clip.get_model_preprocess_cfg(self._model),
            dtype=dtype,
            context_length=int(self._tokenize.context_length),
        )
        self.embedding_dim = int(self.encode_captions(["a"]).shape[1])

    def encode_pixels(self, pictures: "torch.Tensor") -> Floats:
        """Embeddings [n, dim], L2-normalised, of pictures as `self.input` makes them: uint8 [n, 3, side, side]."""

        if self.device == "cuda":
            pictures = pictures.pin_memory()  # copied while the batch before is still being computed

        def embed(part: "torch.Tensor") -> "torch.Tensor":
            ready = self.input.batch(part.to(self.device, non_blocking=True), self._dtype)  # [b, 3, side, side]
            return self._model.encode_image(ready)  # type: ignore[no-any-return]

        return self._in_parts(pictures, embed)  # [n, dim]

    def encode_captions(self, captions: Sequence[str]) -> Floats:
        """Embeddings [n, dim] of captions, L2-normalised, cut as `MAX_CAPTION_BYTES` says."""
        if not captions:
            return np.empty((0, self.embedding_dim), np.float32)
        tokens = self._tokenize([_bounded(caption) for caption in captions])  # [n, context_length]
        lengths = self._text.lengths(tokens)
        order = lengths.argsort()  # like with like: a batch is as long as its longest caption
        tokens, lengths = tokens[order], lengths[order]

        def embed(part: "torch.Tensor") -> "torch.Tensor":
            return self._text(part.to(self.device))

        parts, size = [], self.batch_size  # which may be halved on the way
        for start in range(0, len(tokens), size):
            end = start + size
            parts.append(self._in_parts(tokens[start:end, : int(lengths[start:end].max())], embed))
        found = np.empty((len(tokens), parts[0].shape[1]), np.float32)
        found[order.numpy()] = np.concatenate(parts)
        return found  # [n, dim]

    def _in_parts(self, batch: "torch.Tensor", embed: "Callable[[torch.Tensor], torch.Tensor]") -> Floats:
        """Embed in parts of at most `batch_size`, which is halved for good where the device has no memory for it."""
        torch, parts, start = self._torch, [], 0
        is_reduced = self._dtype != torch.float32
        # Some of open_clip's masks stay float32 whatever the precision (CoCa's, in 3.3): autocast reconciles them.
        with torch.inference_mode(), torch.autocast(self.device, self._dtype, enabled=is_reduced):
            while start < len(batch):
                part = batch[start : start + self.batch_size]
                try:
                    with self._hooks.timed("encode_batch"):
                        found = torch.nn.functional.normalize(embed(part).float(), dim=-1)
                        parts.append(found.cpu())
                except torch.OutOfMemoryError:
                    if self.batch_size == 1:
                        raise
                    self.batch_size = max(1, min(self.batch_size, len(part)) // 2)
                    torch.cuda.empty_cache()
                    continue
                start += len(part)
        return torch.cat(parts).numpy()  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=4)
def load_model(config: ModelConfig, run: RunConfig, hooks: WorkerHooks = NO_HOOKS) -> ClipModel:
    """A model, loaded once per process."""
    return ClipModel(config, run, hooks)


def resolve_weights(models: Sequence[ModelConfig]) -> list[str]:
    """SHA-256 of each model's weights, fetched first where they are not on disk. Raises ModelError; loads nothing."""
    digests = [_sha256(_locate(model)[2]) for model in models]
    for model, digest in zip(models, digests, strict=True):
        if model.weights_sha256 not in (None, digest):
            raise ModelError(
                f"the weights of {model.name!r} have the SHA-256 {digest}, but the job asks for "
                f"{model.weights_sha256}: they are others, or were cut; delete the file to have it fetched again"
            )
    return digests


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One architecture of open_clip's. `on_disk`: those of its tags whose weights are in the local cache."""

    name: str
    embedding_dim: int
    image_side: int
    millions_of_parameters: float
    tags: tuple[str, ...]
    on_disk: tuple[str, ...]


def known_models(pattern: str = "") -> list[KnownModel]:
    """open_clip's architectures whose names hold the pattern, case aside. Parameters are counted without making any, a
    fifth of a second each, where no more than `_COUNTED` match; else they are 0."""
    import logging

    import open_clip
    import torch

    logging.getLogger().setLevel(logging.ERROR)  # open_clip notes on the root logger that there are no weights
    found = [KnownModel("tiny", 128, 64, 3.8, ("built in",), ("built in",))] if pattern.lower() in "tiny" else []
    names = [name for name in open_clip.list_models() if pattern.lower() in name.lower()]
    for name in names:
        config = open_clip.get_model_config(name) or {}
        tags = tuple(open_clip.list_pretrained_tags_by_model(name))
        side = input_side(ModelConfig(name=name))
        found.append(
            KnownModel(
                name=name,
                embedding_dim=int(config.get("embed_dim", 0)),
                image_side=side,
                millions_of_parameters=_parameters(name, torch) / 1e6 if len(names) <= _COUNTED else 0.0,
                tags=tags,
                on_disk=tuple(tag for tag in tags if _is_on_disk(open_clip.get_pretrained_cfg(name, tag))),
            )
        )
    return found


def _parameters(name: str, torch: Any) -> int:
    """0 where the architecture needs a file from Hugging Face that is not here."""
    import open_clip

    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = open_clip.create_model(name, load_weights=False, device="meta")
    except (OSError, RuntimeError, ValueError, ImportError, NotImplementedError):
        return 0
    return sum(parameter.numel() for parameter in model.parameters())


def _is_on_disk(tag: dict[str, Any]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    repo, _, file = tag.get("hf_hub", "").rpartition("/")
    names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    if repo and any(isinstance(try_to_load_from_cache(repo, name), str) for name in names):
        return True
    url_name = tag.get("url", "").rpartition("/")[2]
    return bool(url_name) and (Path.home() / ".cache" / "clip" / url_name).is_file()  # open_clip's own cache


def check_device(run: RunConfig) -> None:
    """Raises ModelError where a GPU is asked for and this machine has none."""
    if run.device == "cuda":
        _device(run)


def resolved_dtype(config: ModelConfig, run: RunConfig) -> str:
    """What `auto` means on this machine."""
    return _dtype(config, _device(run))


def input_side(config: ModelConfig) -> int:
    """Pixels per side that a model looks at; 0 where open_clip's configuration does not say."""
    side = _architecture(config).get("vision_cfg", {}).get("image_size", 0)
    return int(min(side) if isinstance(side, list | tuple) else side)


def _architecture(config: ModelConfig) -> dict[str, Any]:
    """`model_cfg` of open_clip's configuration; empty where it does not say."""
    if folder := _folder(config):
        with (folder / "open_clip_config.json").open("rb") as file:
            return json.load(file).get("model_cfg", {})  # type: ignore[no-any-return]
    import open_clip

    return open_clip.get_model_config(config.name) or {}


def _folder(config: ModelConfig) -> Path | None:
    """The local folder that a model is loaded from, if it is."""
    if config.name == "tiny":
        return TINY_FOLDER
    folder = Path(config.name)
    return folder if (folder / "open_clip_config.json").is_file() else None


def _locate(config: ModelConfig) -> tuple[str, str | None, str]:
    """(open_clip's name, its `pretrained`, path of the weights' file)."""
    if folder := _folder(config):
        found = [folder / name for name in _WEIGHT_NAMES if (folder / name).is_file()]
        if not found:
            raise ModelError(f"{folder} holds no weights; they are expected as one of {', '.join(_WEIGHT_NAMES)}")
        return f"local-dir:{folder}", None, str(found[0])
    if config.name.startswith("hf-hub:"):
        return config.name, None, _fetched(config, lambda hub: hub(config.name.removeprefix("hf-hub:")))
    import open_clip

    if config.name not in open_clip.list_models():
        close = difflib.get_close_matches(config.name, open_clip.list_models())
        raise ModelError(
            f"open_clip has no model {config.name!r}, and there is no such folder with an open_clip_config.json"
            + (f"; near it: {', '.join(close)}" if close else "")
        )
    if not config.pretrained:
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        raise ModelError(f"model {config.name!r} needs `pretrained`: one of {tags}, or a file of weights")
    if Path(config.pretrained).is_file():
        return config.name, config.pretrained, config.pretrained
    tag = open_clip.get_pretrained_cfg(config.name, config.pretrained)
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        raise ModelError(f"{config.pretrained!r} is neither a file nor a tag of {config.name!r}; its tags are {tags}")
    return config.name, config.pretrained, _fetched(config, lambda _: open_clip.download_pretrained(tag))


def _fetched(config: ModelConfig, fetch: Callable[[Any], Any]) -> str:
    """Path of weights that may have to be fetched first."""
    from open_clip.pretrained import download_pretrained_from_hf

    try:
        return str(fetch(download_pretrained_from_hf))
    except Exception as error:  # whatever the hub's client raises when it is offline
        raise ModelError(
            f"the weights {config.pretrained or ''} of {config.name!r} cannot be fetched ({type(error).__name__}); "
            "without a network, give `pretrained` a local file, or a folder as the model's name"
        ) from error


def _device(run: RunConfig) -> str:
    import torch

    if run.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("run.device is cuda, but this machine has no CUDA device; use run.device=cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if run.device == "auto" else run.device


def _dtype(config: ModelConfig, device: str) -> str:
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if device == "cuda" else "float32"


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bounded(caption: str) -> str:
    return caption.encode()[:MAX_CAPTION_BYTES].decode(errors="ignore")
