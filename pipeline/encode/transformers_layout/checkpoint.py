"""Finds the files of a checkpoint in transformers' layout, and checks them without loading any tensor."""

import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors

from pairmill.pipeline.common.text import clean_text, counted
from pairmill.pipeline.encode.model_error import ModelError
from pairmill.pipeline.encode.transformers_layout.config import Config, read_config, read_json
from pairmill.pipeline.encode.transformers_layout.names import is_ignored, sources
from pairmill.pipeline.encode.transformers_layout.preprocessing import (
    PREPROCESSOR,
    PROCESSOR,
    Preprocessing,
    read_preprocessing,
)

CONFIG = "config.json"
_SAFETENSORS, _INDEX, _PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
TOKENIZER_FILES = (("spiece.model",), ("tokenizer.json",), ("vocab.json", "merges.txt"))
"""The files of a tokenizer, in order of preference. The first is only for SigLIP, and the last only for CLIP."""
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", PREPROCESSOR, PROCESSOR)
_MAX_SHARDS = 1_000


class IncompleteError(ModelError):
    """A file of a checkpoint is missing."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json, weights, a tokenizer and, optionally, settings of tokenizer and preprocessing."""

    folder: Path
    config: Config
    weights: tuple[Path, ...]
    """One file, or the shards of model.safetensors.index.json."""
    tokenizer: tuple[Path, ...]
    """The files of one entry in `TOKENIZER_FILES`."""
    preprocessing: Preprocessing

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """Every file that scores depend on."""
        settings = (self.folder / name for name in _SETTINGS)
        return (
            self.folder / CONFIG,
            *self.weights,
            *self.tokenizer,
            *(path for path in settings if path.is_file()),
        )

    def sha256(self) -> str:
        """SHA-256, in hex, of the output of `sha256sum` for `files` in the order of their names."""
        return hashlib.sha256("".join(sorted(map(_checksum_line, self.files), key=_name_of)).encode()).hexdigest()

    def check(self) -> None:
        """Raise ModelError if a weights file is incomplete, or if its tensors do not match config.json. Reads only the
        headers of the files."""
        names: set[str] = set()
        for path in self.weights:
            if path.suffix != ".safetensors":
                check_complete(path)
                return
            names |= tensor_names(path)
        self.check_names(names)

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ModelError unless these are the names of the tensors of the model in config.json."""
        found = {name for name in names if not is_ignored(name)}
        wanted = {name for source in sources(self.config).values() for name in source.names}
        for verb, problem in (("lacks", wanted - found), ("has unknown", found - wanted)):
            if problem:
                raise ModelError(
                    f"{self.weights[0]} does not match the {self.config.model_type} model of {CONFIG}: it {verb} "
                    f"{counted(len(problem), 'tensor')}, such as {clean_text(min(problem))}"
                )


def find_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises ModelError if the model is of another kind or a file is missing."""
    config = read_config(folder / CONFIG)
    settings = read_preprocessing(folder, config)
    return Checkpoint(folder, config, _weights_in(folder), _tokenizer_in(folder, config), settings)


def wanted_files(available: Iterable[str]) -> list[str]:
    """The files that a checkpoint needs, among those at the top level of a repository."""
    names = {name for name in available if "/" not in name}
    weights = {name for name in names if name.startswith("model-") and name.endswith(".safetensors")}
    if _SAFETENSORS in names:
        weights = {_SAFETENSORS}
    elif _INDEX in names:
        weights.add(_INDEX)
    else:
        weights = {_PICKLE}
    tokenizer = {name for group in TOKENIZER_FILES for name in group}
    return sorted(names & (weights | tokenizer | {CONFIG, *_SETTINGS}))


def check_complete(path: Path) -> None:
    """Raise ModelError if a weights file cannot be complete. Reads only its header or its table of contents."""
    if path.suffix == ".safetensors":
        tensor_names(path)
        return
    with path.open("rb") as file:
        is_old_pickle = file.read(1) == b"\x80"  # the format of torch.save before torch 1.6; now it writes zip archives
    if not is_old_pickle and not zipfile.is_zipfile(path):
        raise ModelError(f"{path}: not a complete weights file (half-written?)")


def tensor_names(path: Path) -> set[str]:
    """The names of the tensors in a safetensors file. Raises ModelError if the file cannot be complete."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path}: not a complete weights file (half-written?): {error}") from None


def _weights_in(folder: Path) -> tuple[Path, ...]:
    if (folder / _SAFETENSORS).is_file():
        return (folder / _SAFETENSORS,)
    if (folder / _INDEX).is_file():
        return _shards(folder / _INDEX)
    if (folder / _PICKLE).is_file():
        return (folder / _PICKLE,)
    raise IncompleteError(f"{folder} has no weights: {_SAFETENSORS}, {_INDEX} or {_PICKLE}")


def _shards(index: Path) -> tuple[Path, ...]:
    mapped = read_json(index).get("weight_map")
    names = sorted({str(name) for name in mapped.values()}) if isinstance(mapped, dict) else []
    if not 0 < len(names) <= _MAX_SHARDS:
        raise ModelError(f"{index} lists no weights files, or more than {_MAX_SHARDS:,}")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index} lists {clean_text(name)!r}, which is not a safetensors file in the same folder")
        if not (index.parent / name).is_file():
            raise IncompleteError(f"{index.parent / name}, which {index.name} lists, does not exist")
    return tuple(index.parent / name for name in names)


def _tokenizer_in(folder: Path, config: Config) -> tuple[Path, ...]:
    known = TOKENIZER_FILES[:2] if config.model_type == "siglip" else TOKENIZER_FILES[1:]
    for names in known:
        if all((folder / name).is_file() for name in names):
            return tuple(folder / name for name in names)
    raise IncompleteError(f"{folder} has no tokenizer: {', or '.join(' and '.join(names) for names in known)}")


def _checksum_line(path: Path) -> str:
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n"


def _name_of(line: str) -> str:
    return line.partition("  ")[2]
