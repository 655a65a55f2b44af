"""Invariant of models in transformers' layout: pixels, tokens and similarities equal those of transformers itself.

The oracle is transformers, with seeded random weights.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image

from pairmill.pipeline.encode.clip_model import ClipModel
from pairmill.pipeline.encode.load_model import logit_of
from pairmill.pipeline.encode.model_error import ModelError
from pairmill.pipeline.encode.transformers_layout.checkpoint import find_checkpoint
from pairmill.pipeline.encode.transformers_layout.load import load_towers
from pairmill.pipeline.encode.transformers_layout.tokenizer import FolderTokenizer
from pairmill.pipeline.encode.truncate_caption import CaptionTokenizer
from pairmill.pipeline.encode.weights import TINY_FOLDER, Weights
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from tests.checkpoints import SIDE, save_clip, save_siglip, siglip_tokenizer

RUN = RunConfig(device="cpu", batch_size=3)
CAPTIONS = [
    "a photo of 3 dogs on the beach",
    "",
    "A  Photo\tOF - “Ünïcode” straße 🐕, it's_here!",
    "- starts with punctuation",
    "ﬁne e\u0301 ①",
    "a photo of a dog on the table " * 10,  # longer than any context
    "x" * 3_000,
    "one <|endoftext|> two </s> three <unk> ▁four",
]
CLIPS: dict[str, dict[str, object]] = {
    "quick_gelu": {},
    "gelu, narrow": {"act": "gelu", "projection": 16},
    "tanh, eos 2": {"act": "gelu_pytorch_tanh", "eos": 2},
}
SIGLIPS: dict[str, dict[str, object]] = {"siglip": {}, "siglip, gelu": {"act": "gelu", "width": 32}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """(folder, transformers' model) of each checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")
    clips = {name: (root / name, save_clip(root / name, **settings)) for name, settings in CLIPS.items()}
    return clips | {name: (root / name, save_siglip(root / name, **settings)) for name, settings in SIGLIPS.items()}


def pictures() -> list[npt.NDArray[np.uint8]]:
    """Smooth and noisy pictures, tall and wide, of sizes that leave an even or an odd number of pixels to crop."""
    rng = np.random.default_rng(3)
    sizes = [(40, 33), (33, 36), (64, 48), (51, 200), (33, 33), (20, 27)]
    smooth = [rng.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in sizes]
    return [
        np.asarray(Image.fromarray(small).resize((wide, tall), Image.Resampling.BICUBIC))
        for small, (tall, wide) in zip(smooth, sizes, strict=True)
    ] + [rng.integers(0, 256, (70, 47, 3), dtype=np.uint8)]


def processor_of(folder: Path) -> Any:
    kind = "Siglip" if (folder / "spiece.model").exists() else "CLIP"
    return getattr(transformers, f"{kind}ImageProcessorPil").from_pretrained(folder)


def tokens_of(folder: Path, captions: list[str], length: int) -> torch.Tensor:
    """The tokens from transformers' tokenizer, padded to the model's context."""
    is_siglip = (folder / "spiece.model").exists()
    tokenize = siglip_tokenizer(folder) if is_siglip else transformers.CLIPTokenizer.from_pretrained(folder)
    settings = {"padding": "max_length", "truncation": True, "split_special_tokens": True, "return_tensors": "pt"}
    return tokenize(captions, max_length=length, **settings)["input_ids"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [*CLIPS, *SIGLIPS])
def test_similarities_equal_those_of_transformers(name: str, made: dict[str, tuple[Path, Any]]) -> None:
    folder, oracle = made[name]
    model = ClipModel(ModelConfig(name=str(folder)), RUN)
    pixels = torch.from_numpy(processor_of(folder)(pictures(), return_tensors="np")["pixel_values"])
    ids = tokens_of(folder, CAPTIONS, oracle.config.text_config.max_position_embeddings)
    with torch.no_grad():
        logits = oracle(input_ids=ids, pixel_values=pixels).logits_per_image
        scale, bias = oracle.logit_scale.exp(), getattr(oracle, "logit_bias", torch.zeros(1)).detach()
        given = model.input.normalize(
            torch.stack([model.input.prepare(picture) for picture in pictures()]), torch.float32
        )
        same_pixels = oracle(input_ids=ids, pixel_values=given).logits_per_image
    found = model.encode_images(torch.stack([model.input.prepare(picture) for picture in pictures()]))
    similarity = found @ model.encode_captions(CAPTIONS).T
    assert np.abs(similarity - ((same_pixels - bias) / scale).numpy()).max() < 1e-5
    assert np.abs(similarity - ((logits - bias) / scale).numpy()).max() < 5e-3  # the pixels differ by rounding
    assert model.logit_scale == pytest.approx(float(scale), rel=1e-6)
    assert model.is_sigmoid == name.startswith("siglip")
    assert model.logit_bias == (pytest.approx(float(bias)) if model.is_sigmoid else None)


@pytest.mark.parametrize("name", ["quick_gelu", "siglip"])
def test_pixels_equal_those_of_the_image_processor(name: str, made: dict[str, tuple[Path, Any]]) -> None:
    folder, _ = made[name]
    model = ClipModel(ModelConfig(name=str(folder)), RUN)
    processor = processor_of(folder)
    std = torch.tensor(processor.image_std).view(1, 3, 1, 1)
    *smooth, noise = pictures()
    for picture in (*smooth, noise):
        wanted = torch.from_numpy(processor(picture, return_tensors="np")["pixel_values"])
        found = model.input.normalize(model.input.prepare(picture)[None], torch.float32)
        assert found.shape == (1, 3, SIDE, SIDE)
        levels = ((found - wanted) * std * 255).abs()  # on a scale of 0 to 255
        # torch's resize rounds a few pixels of the noise differently
        assert float((levels > 1.01).float().mean()) < (0.005 if picture is noise else 1e-9)


@pytest.mark.parametrize("name", ["quick_gelu", "siglip"])
@pytest.mark.parametrize("files", ["all", "vocab.json", "bare"])
def test_tokens_equal_those_of_the_tokenizer(
    name: str, files: str, made: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, oracle = made[name]
    mine = shutil.copytree(folder, tmp_path / "mine")
    if files == "vocab.json" and name == "quick_gelu":
        transformers.CLIPTokenizer.from_pretrained(folder).backend_tokenizer.model.save(str(mine))
        (mine / "tokenizer.json").unlink()
    if files == "bare":
        (mine / "tokenizer_config.json").unlink()
    tokenize = FolderTokenizer(find_checkpoint(mine))
    assert tokenize.context_length == oracle.config.text_config.max_position_embeddings
    assert torch.equal(tokenize(CAPTIONS), tokens_of(folder, CAPTIONS, tokenize.context_length))


@pytest.mark.parametrize("name", ["quick_gelu", "siglip"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_counted_without_padding_on_either_side(
    name: str, side: str, made: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    mine = shutil.copytree(made[name][0], tmp_path / "mine")
    settings = json.loads((mine / "tokenizer_config.json").read_text())
    (mine / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": side}))
    tokenize, oracle = FolderTokenizer(find_checkpoint(mine)), transformers.AutoTokenizer.from_pretrained(mine)
    captions = ["", "a", "a photo of 3 dogs", "a photo of a dog on the table " * 10, " " * 5_000 + "a dog"]
    length = tokenize.context_length
    limited = CaptionTokenizer(tokenize, length)
    assert torch.equal(limited(captions), tokenize(captions))
    wanted = [len(oracle(caption, truncation=True, max_length=length)["input_ids"]) for caption in captions]
    counts, is_full = limited.lengths(captions)
    assert (counts.tolist(), is_full.tolist()) == (wanted, [count == length for count in wanted])


@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json"])
def test_a_sentencepiece_model_without_the_added_tokens_is_refused(
    file: str, made: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    mine = shutil.copytree(made["siglip"][0], tmp_path / "mine")
    tokenizer = siglip_tokenizer(mine)
    tokenizer.add_tokens(["dogs"])
    if file == "tokenizer_config.json":
        tokenizer.save_pretrained(mine)
    else:  # as in transformers 4
        (mine / file).write_text(json.dumps({"dogs": tokenizer.convert_tokens_to_ids("dogs")}))
    with pytest.raises(ModelError, match="lacks tokens that were added to the tokenizer"):
        FolderTokenizer(find_checkpoint(mine))


def test_siglip_2_lowercases_text_and_keeps_punctuation(made: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    mine = shutil.copytree(made["siglip"][0], tmp_path / "mine")
    (mine / "spiece.model").unlink()
    pieces = {
        token: n
        for n, token in enumerate(
            ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "ab", *"▁abcdefghijklmnopqrstuvwxyz,!"]
        )
    }
    oracle = transformers.Siglip2Tokenizer(vocab=pieces, merges=[("a", "b")], padding_side="right")
    oracle.backend_tokenizer.save(str(mine / "tokenizer.json"))
    (mine / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    captions = ["A cab, A CAB!", "abc " * 40]
    wanted = oracle(captions, padding="max_length", max_length=64, truncation=True, return_tensors="pt")["input_ids"]
    assert torch.equal(FolderTokenizer(find_checkpoint(mine))(captions), wanted)


def test_shards_and_pickled_tensors_give_the_same_model(made: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    folder, oracle = made["quick_gelu"]
    expected = ClipModel(ModelConfig(name=str(folder)), RUN).encode_captions(CAPTIONS)
    for kind in ("shards", "pickle", "half"):
        mine = shutil.copytree(folder, tmp_path / kind)
        (mine / "model.safetensors").unlink()
        if kind == "shards":
            oracle.save_pretrained(mine, max_shard_size="100KB")
            assert len(find_checkpoint(mine).weights) > 1
        elif kind == "pickle":
            positions = {"text_model.embeddings.position_ids": torch.arange(20)[None]}  # stored by older versions
            torch.save({**oracle.state_dict(), **positions}, mine / "pytorch_model.bin")
        else:
            half = {name: value.half().contiguous() for name, value in oracle.state_dict().items()}
            safetensors.torch.save_file(half, mine / "model.safetensors")
        found = ClipModel(ModelConfig(name=str(mine)), RUN).encode_captions(CAPTIONS)
        assert np.abs(found - expected).max() < (1e-2 if kind == "half" else 1e-6)


@pytest.mark.parametrize("name", ["quick_gelu", "siglip"])
def test_bfloat16_gives_nearly_the_same_embeddings(name: str, made: dict[str, tuple[Path, Any]]) -> None:
    whole, half = (
        ClipModel(ModelConfig(name=str(made[name][0]), dtype=dtype), RUN) for dtype in ("float32", "bfloat16")
    )
    inputs = torch.stack([whole.input.prepare(picture) for picture in pictures()])
    for one, other in (
        (whole.encode_images(inputs), half.encode_images(inputs)),
        (whole.encode_captions(CAPTIONS), half.encode_captions(CAPTIONS)),
    ):
        assert (one * other).sum(axis=1).min() > 0.999
    assert half.logit_scale == whole.logit_scale


def test_older_names_in_config_files_mean_the_same_as_newer_ones(
    made: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    """Covers `text_config_dict` and sizes given as numbers. Without a preprocessing file, the model's size is used."""
    folder, _ = made["gelu, narrow"]
    expected = find_checkpoint(folder)
    mine = shutil.copytree(folder, tmp_path / "mine")
    config = json.loads((mine / "config.json").read_text())
    config["text_config_dict"] = config.pop("text_config")
    (mine / "config.json").write_text(json.dumps(config))
    preprocessing = json.loads((mine / "preprocessor_config.json").read_text())
    (mine / "preprocessor_config.json").write_text(json.dumps({**preprocessing, "size": SIDE, "crop_size": SIDE}))
    found = find_checkpoint(mine)
    assert (found.config, found.preprocessing) == (expected.config, expected.preprocessing)
    (mine / "preprocessor_config.json").rename(mine / "aside")
    assert find_checkpoint(mine).preprocessing == expected.preprocessing
    (mine / "processor_config.json").write_text(json.dumps({"image_processor": {**preprocessing, "resample": 2}}))
    assert find_checkpoint(mine).preprocessing.resample == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scale_and_bias_of_an_open_clip_model_equal_those_in_its_weights(dtype: str) -> None:
    stored = safetensors.torch.load_file(TINY_FOLDER / "model.safetensors")
    model = ClipModel(ModelConfig(name="tiny", dtype=dtype), RUN)
    assert model.logit_scale == pytest.approx(float(stored["logit_scale"].float().exp()), rel=1e-6)
    assert (model.logit_bias, model.is_sigmoid) == (float(stored["logit_bias"]), True)


def test_scale_and_bias_that_open_clip_rounds_are_read_from_the_weights(tmp_path: Path) -> None:
    weights = Weights("any", None, tmp_path / "model.safetensors")
    safetensors.torch.save_file({"logit_scale": torch.tensor([4.7654])}, weights.path)
    rounded = SimpleNamespace(logit_scale=torch.tensor([4.7654], dtype=torch.bfloat16), logit_bias=None)
    assert logit_of(rounded, "logit_scale", weights) == pytest.approx(4.7654, abs=1e-6)
    assert logit_of(rounded, "logit_bias", weights) is None


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("device", ["sparse", "meta"])
def test_pickled_tensors_that_are_not_plain_are_refused(
    device: str, made: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, oracle = made["quick_gelu"]
    mine = shutil.copytree(folder, tmp_path / "mine")
    (mine / "model.safetensors").unlink()
    weights = oracle.state_dict()
    weight = weights["visual_projection.weight"]
    weights["visual_projection.weight"] = weight.to_sparse() if device == "sparse" else weight.to("meta")
    torch.save(weights, mine / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"the tensor visual_projection\.weight is not a plain array of real numbers"):
        load_towers(find_checkpoint(mine))
