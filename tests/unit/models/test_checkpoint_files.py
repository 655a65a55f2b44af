"""Invariant of checkpoints in transformers' layout: files that cannot be loaded are refused in one line that names the
file, before anything starts if the header or the settings show the problem; the checksum covers every file that scores
depend on; and a model in the hub's cache equals its folder.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from pairmill.pipeline.encode import hub
from pairmill.pipeline.encode.clip_model import ClipModel
from pairmill.pipeline.encode.transformers_layout.checkpoint import wanted_files
from pairmill.pipeline.encode.weights import ModelError, find_weights, input_side, is_model_folder, resolve_weights
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from tests.checkpoints import SIDE, files_of, save_clip, save_siglip

RUN = RunConfig(device="cpu")
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    save_siglip(folder)
    return folder


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def cut(name: str, part: float = 0.9) -> Change:
    def change(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(part * len(whole))])

    return change


def with_config(name: str = "config.json", side: str | None = None, **values: Any) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        (config[side] if side else config).update(values)
        (folder / name).write_text(json.dumps(config))

    return change


def with_tensors(change_tensors: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change_tensors(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")

    return change


def sharded(*names: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        mapped = {f"tensor{n}": name for n, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))

    return change


def pickled(value: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(value, folder / "pytorch_model.bin")

    return change


class Trap:
    """A pickle that creates the file `sprung` in the current folder when it is loaded."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("sprung"),))


AT_ONCE: dict[str, tuple[str, Change]] = {
    "has type 'bert'; in this layout, pairmill loads only clip and siglip": ("clip", with_config(model_type="bert")),
    "has type 'siglip2'": ("siglip", with_config(model_type="siglip2")),
    "config.json cannot be read": ("clip", cut("config.json")),
    "config.json is larger than": ("clip", lambda folder: (folder / "config.json").write_bytes(b" " * (9 << 20))),
    "text_config.hidden_act: Input should be": ("clip", with_config(side="text_config", hidden_act="relu")),
    "hidden_size is not a multiple of": ("clip", with_config(side="vision_config", num_attention_heads=7)),
    "vision_config.num_hidden_layers: Input should be": (
        "clip", with_config(side="vision_config", num_hidden_layers=10**9)),
    "vision_config.vision_use_head: Input should be True": (
        "siglip", with_config(side="vision_config", vision_use_head=False)),
    "the tokenizer does not load: it lacks <end> or </s>": (
        "siglip", with_config("tokenizer_config.json", eos_token="<end>")),
    "the embeddings of captions and pictures differ": ("siglip", with_config(side="text_config", projection_size=8)),
    "has no tokenizer: tokenizer.json, or vocab.json and merges.txt": ("clip", without("tokenizer.json")),
    "has no tokenizer: spiece.model, or tokenizer.json": ("siglip", without("spiece.model")),
    "tokenizer.json: the tokenizer does not load": ("clip", cut("tokenizer.json")),
    "spiece.model: the tokenizer does not load": ("siglip", cut("spiece.model")),
    "does not end captions with the token 7": ("clip", with_config(side="text_config", eos_token_id=7)),
    "the tokenizer belongs to another model": ("clip", with_config(side="text_config", vocab_size=99)),
    "has no weights: model.safetensors, model.safetensors.index.json or": ("clip", without("model.safetensors")),
    "not a complete weights file (half-written?)": ("clip", cut("model.safetensors")),
    "pytorch_model.bin: not a complete weights file": ("clip", lambda folder: (
        pickled({"a": torch.zeros(9)})(folder), cut("pytorch_model.bin")(folder))),
    "lacks 1 tensor, such as logit_scale": ("clip", with_tensors(lambda tensors: tensors.pop("logit_scale"))),
    "has unknown 1 tensor, such as lora": ("clip", with_tensors(lambda tensors: tensors.update(lora=torch.zeros(1)))),
    "does not match the clip model of config.json: it lacks 32 tensors": (
        "clip", with_config(side="text_config", num_hidden_layers=4)),
    "'../model.safetensors', which is not a safetensors file in the same": ("clip", sharded("../model.safetensors")),
    "model-2.safetensors, which model.safetensors.index.json lists, does not exist": (
        "clip", sharded("model-2.safetensors")),
    "lists no weights files": ("clip", sharded()),
    "size.longest_edge: Extra inputs": ("clip", with_config("preprocessor_config.json", "size", longest_edge=99)),
    f"do not produce the {SIDE} x {SIDE} pixels": ("clip", with_config("preprocessor_config.json", size=SIDE - 1)),
    "resample: Input should be 2 or 3, not 1": ("clip", with_config("preprocessor_config.json", resample=1)),
    "rescale_factor: Value error, only 1/255": ("siglip", with_config("preprocessor_config.json", rescale_factor=1.0)),
    "image_std.0: Input should be greater than 0": (
        "siglip", with_config("preprocessor_config.json", image_std=[0, 1, 1])),
}  # fmt: skip
WHEN_LOADED: dict[str, tuple[str, Change]] = {
    "visual_projection.weight, of shape [24, 48], does not match config.json": (
        "clip", with_config(projection_dim=48)),
    "visual_projection.weight is NaN or infinite": (
        "clip", with_tensors(lambda tensors: tensors["visual_projection.weight"][0].fill_(torch.nan))),
    "contains objects that are not tensors, so it is not loaded": ("clip", pickled({"logit_scale": Trap()})),
    "pytorch_model.bin is not a dictionary of tensors": ("clip", pickled({"epoch": 3})),
    "it lacks 77 tensors, such as text_model.": ("clip", pickled({"logit_scale": torch.zeros([])})),
}  # fmt: skip


@pytest.mark.parametrize("message", [*AT_ONCE, *WHEN_LOADED])
def test_files_that_cannot_be_loaded_are_refused_in_one_line(
    message: str, clip: Path, siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, change = (AT_ONCE | WHEN_LOADED)[message]
    folder = shutil.copytree({"clip": clip, "siglip": siglip}[kind], tmp_path / "model")
    change(folder)
    config = ModelConfig(name=str(folder))
    with pytest.raises(ModelError) as refused:
        resolve_weights([config])
        assert message in WHEN_LOADED
        ClipModel(config, RUN)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_with_its_own_weights_takes_no_pretrained_weights(clip: Path) -> None:
    with pytest.raises(ModelError, match=r"leave out `pretrained` \('openai'\)"):
        find_weights(ModelConfig(name=str(clip), pretrained="openai"))


def test_the_checksum_covers_exactly_the_files_that_matter(clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip, tmp_path / "model")
    (digest,) = resolve_weights([ModelConfig(name=str(folder))])
    listed = subprocess.run(["sha256sum", *files_of(folder)], capture_output=True, check=True, cwd=folder).stdout
    assert digest == hashlib.sha256(listed).hexdigest()
    for name in files_of(folder):
        (folder / "README.md").write_text("changes nothing")
        assert find_weights(ModelConfig(name=str(folder))).sha256() == digest
        other = shutil.copytree(folder, tmp_path / name)
        with (other / name).open("ab") as file:
            file.write(b"\n")
        assert find_weights(ModelConfig(name=str(other))).sha256() != digest


def test_a_folder_with_an_open_clip_config_is_read_in_open_clips_layout(clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip, tmp_path / "model")
    assert is_model_folder(str(folder))
    assert find_weights(ModelConfig(name=str(folder))).checkpoint
    assert input_side(ModelConfig(name=str(folder))) == SIDE
    (folder / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert find_weights(ModelConfig(name=str(folder))).name == f"local-dir:{folder}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, without network access."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def into_cache(cache: Path, folder: Path, repo: str) -> Path:
    """Lay a folder out as huggingface_hub does: links into blobs, under the commit that `main` points to."""
    root, commit = cache / f"models--{repo.replace('/', '--')}", "c" * 40
    snapshot = root / "snapshots" / commit
    for part in (snapshot, root / "blobs", root / "refs"):
        part.mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, root / "blobs" / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_a_model_on_the_hub_is_loaded_from_the_cache(clip: Path, cache: Path) -> None:
    snapshot = into_cache(cache, clip, "openai/clip-tiny")
    config = ModelConfig(name="openai/clip-tiny")
    assert config.alias == "openai_clip_tiny"
    assert resolve_weights([config]) == resolve_weights([ModelConfig(name=str(clip))])
    found, expected = (ClipModel(each, RUN) for each in (config, ModelConfig(name=str(clip))))
    assert (found.contract.name, found.contract.pretrained) == ("openai/clip-tiny", None)
    assert (found.encode_captions(["a dog"]) == expected.encode_captions(["a dog"])).all()
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        find_weights(config)


def test_the_error_about_a_missing_hub_model_says_what_to_do(cache: Path) -> None:
    with pytest.raises(ModelError) as refused:
        find_weights(ModelConfig(name="openai/clip-tiny"))
    expected = (
        "no model folder openai/clip-tiny exists, and the model 'openai/clip-tiny' on the Hub cannot be fetched: "
    )
    assert (
        str(refused.value)
        == f"{expected}HF_HUB_OFFLINE is set, and {cache} (HF_HOME) lacks the files; {hub.WITHOUT_NETWORK}"
    )


@pytest.mark.parametrize(
    ("others", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.safetensors.index.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors", "pytorch_model.bin"],
         ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json"]),
        (["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"], ["pytorch_model.bin"]),
    ],
)  # fmt: skip
def test_only_needed_files_of_a_repository_are_fetched(others: list[str], weights: list[str]) -> None:
    known = ["config.json", "preprocessor_config.json", "tokenizer.json"]
    top = wanted_files([*known, *others, "README.md", "onnx/model.safetensors", ".gitattributes"])
    assert top == sorted([*known, *weights])
