"""Compares embeddings and similarities with plain open_clip, with random weights of real architectures."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from PIL import Image

from pairmill.jobs.cluster.pools import ENCODE_CALLS
from pairmill.pipeline.common.progress import WorkProgress
from pairmill.pipeline.encode.clip_model import ClipModel, load_model
from pairmill.pipeline.encode.encoder import Encoder
from pairmill.pipeline.encode.weights import TINY_FOLDER, ModelError, resolve_weights
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.pairs import in_flight_schema
from tests.integration.test_build import picture

CAPTIONS = [
    "a dog",
    "two people ride horses along a beach at sunset while a storm comes in from the sea",
    "",
    "a",
    "photo " * 100,  # longer than the context
    "ein Hund läuft über die Straße 🐕",
]
ARCHITECTURES = ["ViT-B-32", "RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "EVA02-B-16"]


def photographs() -> list[bytes]:
    bodies = []
    for n, (width, height) in enumerate([(512, 384), (384, 512), (224, 224), (640, 100), (90, 200), (512, 511)]):
        image = Image.open(io.BytesIO(picture(n))).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        body = io.BytesIO()
        image.save(body, "JPEG", quality=95)
        bodies.append(body.getvalue())
    return bodies


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Architectures with seeded random weights, as folders. All but ViT-B-32 have fewer layers than usual, which
    saves minutes. SigLIP gets CLIP's tokenizer, because its own would have to be downloaded."""
    made = {"tiny": TINY_FOLDER}
    for name in ARCHITECTURES:
        made[name] = tmp_path_factory.mktemp("model")
        config = open_clip.get_model_config(name)
        config["text_cfg"].pop("hf_tokenizer_name", None)
        config["text_cfg"].pop("tokenizer_kwargs", None)
        config["text_cfg"]["vocab_size"] = 49_408
        if name != "ViT-B-32":
            config["text_cfg"]["layers"] = 3
            config["vision_cfg"]["layers"] = [1, 1, 1, 1] if name == "RN50" else 3
        if "EVA02" in name:
            config["vision_cfg"]["timm_model_name"] = "eva02_tiny_patch14_224"  # timm's models have all their layers
        preprocess = {"interpolation": "bicubic", "resize_mode": "squash" if "SigLIP" in name else "shortest"}
        made[name].joinpath("open_clip_config.json").write_text(
            json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
        )
        torch.manual_seed(7)
        model = open_clip.create_model(f"local-dir:{made[name]}", load_weights=False)
        safetensors.torch.save_model(model, str(made[name] / "model.safetensors"))
    return made


def config_of(name: str, folders: dict[str, Path], **more: Any) -> ModelConfig:
    return ModelConfig(name=str(folders[name]), **more)


def table_of(bodies: list[bytes], captions: list[str | None]) -> pa.Table:
    rows = [
        {"row_id": f"0:{n}", "uid": f"{n:032x}", "status": "ok", "is_pair": True, "sha256": f"{hash(body):x}"}
        | {"image": body, "caption": caption, "caption_clean": caption}
        for n, (body, caption) in enumerate(zip(bodies, captions, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=in_flight_schema(pa.schema([])))


def plain(folder: Path, bodies: list[bytes], captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The image and text embeddings, computed with open_clip alone."""
    located = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(located)
    tokenize = open_clip.get_tokenizer(located)
    model.eval()
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.open(io.BytesIO(body)).convert("RGB")) for body in bodies])
        image, text = model.encode_image(images, normalize=True), model.encode_text(tokenize(captions), normalize=True)
    return image.numpy(), text.numpy()


def test_every_picture_counts_as_one_item(folders: dict[str, Path]) -> None:
    bodies, progress = [*photographs(), b"broken"], WorkProgress()
    with progress.shard(rows=7) as part:
        encoder = Encoder([config_of("tiny", folders)], RunConfig(device="cpu", batch_size=2), ImagesConfig())
        encoder(table_of(bodies, [*CAPTIONS, "none"]), part)
        counts = progress.counts()
    assert (counts.items, counts.good_items, counts.open_rows) == (7, 6, 7)


@pytest.mark.parametrize("name", ["tiny", *ARCHITECTURES])
def test_scores_equal_those_of_plain_open_clip(name: str, folders: dict[str, Path]) -> None:
    bodies = photographs()
    image, text = plain(folders[name], bodies, CAPTIONS)
    expected = (image * text).sum(axis=1)
    straight, mixed = [0, 1, 2, 3, 4, 5], [3, 0, 5, 1, 4, 2]
    ways = [("float32", 4, mixed, 1e-3), ("bfloat16", 4, mixed, 5e-3)]
    if name == "tiny":
        ways += [("float32", 1, straight, 1e-3), ("float32", 32, straight, 1e-3)]
    for dtype, batch_size, order, tolerance in ways:
        run = RunConfig(device="cpu", batch_size=batch_size)
        encoder = Encoder([config_of(name, folders, alias="m", dtype=dtype)], run, ImagesConfig())
        done = encoder(table_of([bodies[n] for n in order], [CAPTIONS[n] for n in order]))
        encoder.close()
        assert np.abs(done["similarity_m"].to_numpy() - expected[order]).max() <= tolerance
        stored = np.stack(done["image_embedding_m"].to_pylist()).astype(np.float32)
        assert ((stored * image[order]).sum(axis=1) > 1 - tolerance).all()


@pytest.mark.parametrize("name", ["tiny", "ViT-B-32", "EVA02-B-16", "RN50"])
def test_captions_have_the_same_embeddings_without_their_padding(name: str, folders: dict[str, Path]) -> None:
    model = load_model(config_of(name, folders, alias="m"), RunConfig(device="cpu", batch_size=3))
    assert model._text.is_trimmed
    _, text = plain(folders[name], photographs()[:1], CAPTIONS)
    assert np.abs(model.encode_captions(CAPTIONS) - text).max() < 1e-5


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_text_towers_that_attend_to_the_padding_get_it(name: str, folders: dict[str, Path]) -> None:
    model = load_model(config_of(name, folders, alias="m"), RunConfig(device="cpu"))
    assert not model._text.is_trimmed


def test_two_models_in_one_pass_compute_the_same_scores_as_each_alone(folders: dict[str, Path]) -> None:
    configs = [config_of("tiny", folders, alias="a"), config_of("RN50", folders, alias="b")]
    table = table_of(photographs(), [*CAPTIONS])
    run = RunConfig(device="cpu", batch_size=4)
    both = Encoder(configs, run, ImagesConfig())(table)
    for config in configs:
        alone = Encoder([config], run, ImagesConfig())(table)
        for name in (f"similarity_{config.alias}", f"image_embedding_{config.alias}"):
            assert both[name].equals(alone[name])


def test_shards_encoded_two_at_a_time_have_the_same_scores_as_one_after_the_other(folders: dict[str, Path]) -> None:
    """This is how an actor on a GPU works."""
    pictures = photographs()
    shards = [table_of(pictures[n:] + pictures[:n], CAPTIONS[n:] + CAPTIONS[:n]) for n in range(6)]
    run = RunConfig(device="cpu", batch_size=2)
    encoder = Encoder(
        [config_of("tiny", folders, alias="a"), config_of("RN50", folders, alias="b")], run, ImagesConfig()
    )
    expected = [encoder(table) for table in shards]
    with ThreadPoolExecutor(ENCODE_CALLS) as pool:
        found = list(pool.map(encoder, shards))
    for name in ("similarity_a", "similarity_b", "image_embedding_b", "text_embedding_b"):
        assert all(one[name].equals(other[name]) for one, other in zip(found, expected, strict=True))


def test_a_picture_that_does_not_decode_costs_only_its_row() -> None:
    bodies = photographs()
    bodies[2] = bodies[2][:300]
    run = RunConfig(device="cpu", batch_size=2)
    done = Encoder([ModelConfig(name="tiny")], run, ImagesConfig())(table_of(bodies, [*CAPTIONS]))
    assert done["status"].to_pylist() == ["ok", "ok", "image_corrupt", "ok", "ok", "ok"]
    assert done["is_pair"].to_pylist() == [True, True, False, True, True, True]
    assert done["similarity_tiny"].null_count == 1
    assert done["similarity_tiny"][2].as_py() is None
    good = Encoder([ModelConfig(name="tiny")], run, ImagesConfig())(table_of(photographs(), [*CAPTIONS]))
    assert done["similarity_tiny"][3].as_py() == pytest.approx(good["similarity_tiny"][3].as_py(), abs=1e-6)


def test_a_row_without_picture_or_caption_still_has_the_other_embedding() -> None:
    table = table_of(photographs()[:2], ["a red circle", None])
    place = table.schema.get_field_index("sha256")
    table = table.set_column(place, "sha256", pa.array([None, "b"]))
    done = Encoder([ModelConfig(name="tiny")], RunConfig(device="cpu"), ImagesConfig())(table)
    assert [done[f"{side}_embedding_tiny"].is_valid().to_pylist() for side in ("image", "text")] == [
        [False, True],
        [True, False],
    ]
    assert done["similarity_tiny"].null_count == 2


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ClipModel(ModelConfig(name="tiny"), RunConfig(device="cpu", batch_size=16))
    whole = model.encode_captions([f"caption {n}" for n in range(16)])
    encode = model._model.encode_text

    def small(tokens: torch.Tensor, *more: Any) -> torch.Tensor:
        if len(tokens) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(tokens, *more)  # type: ignore[no-any-return]

    monkeypatch.setattr(model._model, "encode_text", small)
    monkeypatch.setattr(model._text, "is_trimmed", False)
    assert np.abs(model.encode_captions([f"caption {n}" for n in range(16)]) - whole).max() < 1e-5
    assert model.batch_size == 4


def test_a_model_can_be_a_folder_whose_checksum_is_verified(tmp_path: Path) -> None:
    for file in TINY_FOLDER.glob("*"):
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = ModelConfig(name=str(tmp_path), alias="mine")
    (digest,) = resolve_weights([config])
    assert digest == resolve_weights([ModelConfig(name="tiny")])[0]
    with pytest.raises(ModelError, match="the job expects 00000"):
        resolve_weights([config.model_copy(update={"weights_sha256": "0" * 64})])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="contains no weights"):
        resolve_weights([config])


def test_an_unknown_model_name_suggests_similar_ones() -> None:
    with pytest.raises(ModelError, match="similar names: ViT-B-32"):
        resolve_weights([ModelConfig(name="ViT-B-322", pretrained="openai")])


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"state_dict": Trap()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="the weights of 'RN50' do not load"):
        ClipModel(ModelConfig(name="RN50", pretrained=str(tmp_path / "evil.pt")), RunConfig(device="cpu"))
    assert not (tmp_path / "sprung").exists()
