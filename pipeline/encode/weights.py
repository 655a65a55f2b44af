"""Finds a model's weights on disk or downloads them, and checks their SHA-256. Loads no model."""

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pairmill.pipeline.common.files import absolute
from pairmill.pipeline.encode import hub
from pairmill.pipeline.encode.model_error import ModelError as ModelError
from pairmill.pipeline.encode.transformers_layout import checkpoint
from pairmill.pipeline.encode.transformers_layout.checkpoint import Checkpoint, find_checkpoint, wanted_files
from pairmill.pipeline.encode.transformers_layout.config import read_json
from pairmill.schemas.job.models import ModelConfig

TINY_FOLDER = Path(__file__).parent / "tiny"

_OPEN_CLIP_CONFIG = "open_clip_config.json"
_WEIGHT_NAMES = (  # in open_clip's order of preference (open_clip 3.3, factory.py)
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)


_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's weights file and how to load it."""

    name: str
    """open_clip's name for the model: an architecture, `local-dir:FOLDER` or `hf-hub:REPO`."""
    pretrained: str | None
    path: Path
    checkpoint: Checkpoint | None = None
    """Set for a model in transformers' layout, which open_clip does not load. `path` is its first weights file."""

    def sha256(self) -> str:
        """SHA-256, in hex, of the file, or of all files of a checkpoint that scores depend on."""
        if self.checkpoint:
            return self.checkpoint.sha256()
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check(self) -> None:
        """Raise ModelError if the file cannot be complete. Reads only its header or its table of contents. For a
        checkpoint, also checks the tokenizer."""
        if self.checkpoint:
            from pairmill.pipeline.encode.transformers_layout.tokenizer import FolderTokenizer  # two large libraries

            self.checkpoint.check()
            FolderTokenizer(self.checkpoint)
        else:
            checkpoint.check_complete(self.path)


def resolve_weights(models: Sequence[ModelConfig]) -> list[str]:
    """SHA-256 of each model's weights. Downloads weights that are not on disk. Raises ModelError."""
    digests = []
    for model in models:
        weights = find_weights(model)
        weights.check()
        digests.append(weights.sha256())
    for model, digest in zip(models, digests, strict=True):
        if model.weights_sha256 not in (None, digest):
            raise ModelError(
                f"the weights of {model.name!r} have the SHA-256 {digest}, but the job expects "
                f"{model.weights_sha256}: the file is incomplete or a different one; delete it to download it again"
            )
    return digests


def find_weights(config: ModelConfig) -> Weights:
    """A model's weights. Downloads them if they are not on disk. Raises ModelError."""
    if folder := _local_folder(config):
        return _in_folder(folder)
    if held := _held(config):
        return Weights(config.name, None, held.weights[0], held)
    if config.name.startswith("hf-hub:"):
        return Weights(config.name, None, _download(config, {"hf_hub": f"{config.name.removeprefix('hf-hub:')}/"}))
    return _of_architecture(config)


def is_model_folder(name: str) -> bool:
    """Whether a model's name is the path of a local folder, in open_clip's layout or that of transformers."""
    folder = Path(absolute(name))
    return name != "tiny" and any((folder / file).is_file() for file in (_OPEN_CLIP_CONFIG, checkpoint.CONFIG))


def located(model: ModelConfig) -> ModelConfig:
    """The model with absolute paths, so that they mean the same to workers, which run elsewhere. Names of known models
    and tags of weights stay as they are."""
    found = {"name": absolute(model.name)} if is_model_folder(model.name) else {}
    if model.pretrained is not None and Path(absolute(model.pretrained)).is_file():
        found["pretrained"] = absolute(model.pretrained)
    return model.model_copy(update=found)


def input_side(config: ModelConfig) -> int:
    """Pixels per side of a model's input. 0 if the configuration does not say."""
    if held := _held(config):
        return held.config.vision_config.image_size
    tower = _architecture(config).get("vision_cfg")
    side = tower.get("image_size") if isinstance(tower, dict) else None
    sides = [each for each in (side if isinstance(side, list | tuple) else [side]) if isinstance(each, int)]
    return min(sides, default=0)


def useless_tag(config: ModelConfig) -> str | None:
    """Why `pretrained` has no effect: the model includes its weights. None if it has one, or is not given."""
    if not config.pretrained or not (_local_folder(config) or config.name.startswith("hf-hub:")):
        return None
    return _includes_weights(config)


def _includes_weights(config: ModelConfig) -> str:
    return f"model {config.name!r} includes its weights; leave out `pretrained` ({config.pretrained!r})"


def needs_quick_gelu(config: ModelConfig) -> bool:
    """Whether open_clip's tag says that the weights were trained with QuickGELU, although the architecture uses GELU.

    An example is `ViT-B-32:openai`. open_clip 2 switched to QuickGELU for OpenAI's weights; open_clip 3 only warns.
    """
    if not config.pretrained or _local_folder(config) or Path(config.pretrained).is_file():
        return False
    import open_clip

    tag = open_clip.get_pretrained_cfg(config.name, config.pretrained)
    return bool(tag.get("quick_gelu")) and not _architecture(config).get("quick_gelu")


def tags_with_other_pixels(config: ModelConfig) -> list[str]:
    """All tags of the architecture, if pictures are scaled or normalized differently for each of them than for a file,
    for which open_clip uses its defaults. Empty unless the weights are a file."""
    if not config.pretrained or _local_folder(config) or not Path(config.pretrained).is_file():
        return []
    import open_clip
    from open_clip.transform import PreprocessCfg

    default, tags = PreprocessCfg(), list(open_clip.list_pretrained_tags_by_model(config.name))
    usual = {name: getattr(default, name) for name in ("mean", "std", "interpolation", "resize_mode")}

    def differs(tag: str) -> bool:
        settings = open_clip.get_pretrained_cfg(config.name, tag)
        return any((settings.get(name) or value) != value for name, value in usual.items())

    return tags if all(map(differs, tags)) else []


def _held(config: ModelConfig) -> Checkpoint | None:
    """The checkpoint of a model in transformers' layout. None for other models. Downloads the checkpoint if it is not
    on disk. Raises ModelError."""
    if _local_folder(config):
        return None
    is_local = Path(config.name, checkpoint.CONFIG).is_file()
    if not is_local and not _HUB_NAME.fullmatch(config.name):
        return None
    if config.pretrained:
        raise ModelError(_includes_weights(config))
    if config.quick_gelu:
        raise ModelError(f"model {config.name!r}: its {checkpoint.CONFIG} gives the activation; leave out `quick_gelu`")
    return find_checkpoint(Path(config.name) if is_local else _snapshot(config.name))


def _snapshot(repo: str) -> Path:
    """The folder of a repository in the Hub's cache. Downloads it if it is not complete. Raises ModelError."""
    if folder := hub.cached_folder(repo, checkpoint.CONFIG):
        try:
            find_checkpoint(folder)
            return folder
        except checkpoint.IncompleteError:  # the download was interrupted, or the repository lacks files on the Hub too
            if hub.is_offline():
                raise
    what = f"no model folder {repo} exists, and the model {repo!r} on the Hub"
    if problem := hub.download_problem():
        raise ModelError(f"{what} cannot be fetched: {problem}")
    try:
        return hub.download(repo, wanted_files)
    except Exception as error:  # the Hub's client can raise anything
        raise ModelError(f"{what} cannot be fetched ({type(error).__name__}); {hub.WITHOUT_NETWORK}") from error


def _model_cfg(folder: Path) -> dict[str, object]:
    found = read_json(folder / _OPEN_CLIP_CONFIG).get("model_cfg")
    if not isinstance(found, dict):
        raise ModelError(f"{folder / _OPEN_CLIP_CONFIG} has no object `model_cfg`")
    return found


def _in_folder(folder: Path) -> Weights:
    _model_cfg(folder)
    found = [folder / name for name in _WEIGHT_NAMES if (folder / name).is_file()]
    if not found:
        raise ModelError(f"{folder} contains no weights; expected one of {', '.join(_WEIGHT_NAMES)}")
    return Weights(f"local-dir:{folder}", None, found[0])


def _of_architecture(config: ModelConfig) -> Weights:
    import open_clip

    if config.name not in open_clip.list_models():
        close = difflib.get_close_matches(config.name, open_clip.list_models())
        raise ModelError(
            f"open_clip has no model {config.name!r}, and no folder of this name has an open_clip_config.json or "
            "config.json" + (f"; similar names: {', '.join(close)}" if close else "")
        )
    tags = open_clip.list_pretrained_tags_by_model(config.name)
    if not config.pretrained:
        raise ModelError(f"model {config.name!r} needs `pretrained`: one of {tags}, or a weights file")
    if Path(config.pretrained).is_file():
        return Weights(config.name, config.pretrained, Path(config.pretrained))
    tag = open_clip.get_pretrained_cfg(config.name, config.pretrained)
    if not tag:
        raise ModelError(f"{config.pretrained!r} is neither a file nor a tag of {config.name!r}; its tags are {tags}")
    return Weights(config.name, config.pretrained, _download(config, tag))


def is_on_disk(tag: Mapping[str, str]) -> bool:
    """Whether the weights of a pretrained tag of open_clip are in a local cache.

    The tag's `hf_hub` is ORG/REPO/FILE, or ORG/REPO/ for one of the usual weights files.
    """
    repo, _, file = tag.get("hf_hub", "").rpartition("/")
    names = (f"{file.rpartition('.')[0]}.safetensors", file) if file else _WEIGHT_NAMES
    if repo and hub.is_on_disk(repo, names):
        return True
    url_name = tag.get("url", "").rpartition("/")[2]
    return bool(url_name) and (Path.home() / ".cache" / "clip" / url_name).is_file()  # open_clip's own cache


def _download(config: ModelConfig, tag: dict[str, str]) -> Path:
    """Path of weights in a local cache. Downloads them if they are missing. Raises ModelError."""
    import open_clip

    what = f"the weights {config.pretrained} of {config.name!r}" if config.pretrained else f"the model {config.name!r}"
    if "hf_hub" in tag and not is_on_disk(tag) and (problem := hub.download_problem()):
        raise ModelError(f"{what} cannot be fetched: {problem}")
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # the Hub's client can raise anything
        raise ModelError(f"{what} cannot be fetched ({type(error).__name__}); {hub.WITHOUT_NETWORK}") from error


def _architecture(config: ModelConfig) -> dict[str, object]:
    """The `model_cfg` in open_clip's configuration. Empty if there is none."""
    if folder := _local_folder(config):
        return _model_cfg(folder)
    import open_clip

    return open_clip.get_model_config(config.name) or {}


def _local_folder(config: ModelConfig) -> Path | None:
    """The local folder from which a model is loaded. None if it is not loaded from a folder."""
    if config.name == "tiny":
        return TINY_FOLDER
    folder = Path(config.name)
    return folder if (folder / _OPEN_CLIP_CONFIG).is_file() else None
