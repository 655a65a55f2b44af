"""Tests that heads equal plain torch on the stored embeddings, and that unsuitable files are refused with one clear
line."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pairmill.pipeline.score.head_weights import OPENAI_L14, HeadModel, head_metadata, read_head
from pairmill.pipeline.score.kind import ScoreError
from pairmill.schemas.batch import ScoreContract
from tests.unit.scores.embedded import add, column, stored, unit_vectors, write_embedded

SHARED_DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
HEADS = SHARED_DATA / "heads"
ROWS = 120


def contract(name: str, pretrained: str | None = "openai", alias: str = "clip") -> ScoreContract:
    return ScoreContract(alias, name, pretrained, "0" * 64, {}, "float32", 77)


def dataset(folder: Path, dim: int, model: ScoreContract) -> np.ndarray:
    images = unit_vectors(1, ROWS, dim)
    write_embedded(folder, images, unit_vectors(2, ROWS, dim), contract=model)
    return images


def in_torch(layers: list[torch.nn.Module], inputs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return torch.nn.Sequential(*layers).double()(torch.from_numpy(inputs)).flatten().numpy()


def linear(weights: dict[str, torch.Tensor], name: str) -> torch.nn.Linear:
    weight, bias = weights[f"{name}weight"], weights[f"{name}bias"]
    made = torch.nn.Linear(weight.shape[1], weight.shape[0])
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


@pytest.mark.parametrize(
    ("file", "dim", "model", "names"),
    [
        ("sa_0_4_vit_b_32_linear.pth", 512, "ViT-B-32", [""]),
        ("sa_0_4_vit_l_14_linear.pth", 768, "ViT-L-14", [""]),
        ("sac+logos+ava1-l14-linearMSE.pth", 768, "ViT-L-14", [f"layers.{number}." for number in (0, 2, 4, 6, 7)]),
    ],
)
def test_laions_aesthetic_predictors_equal_torch(
    tmp_path: Path, file: str, dim: int, model: str, names: list[str]
) -> None:
    images = dataset(tmp_path, dim, contract(model))
    add(tmp_path, "aesthetic", head=str(HEADS / file))
    weights = torch.load(HEADS / file, weights_only=True, map_location="cpu")
    assert np.allclose(
        column(tmp_path, "aesthetic"), in_torch([linear(weights, name) for name in names], stored(images)), atol=1e-5
    )


def test_laions_nsfw_head_with_its_normalization_equals_torch(tmp_path: Path) -> None:
    images = dataset(tmp_path, 512, contract("ViT-B-32"))
    add(tmp_path, "nsfw", head=str(HEADS / "clip_ViT-B-32_openai_binary_nsfw_head.pth"))
    weights = torch.load(HEADS / "clip_ViT-B-32_openai_binary_nsfw_head.pth", weights_only=True)
    deviation = np.sqrt(weights["norm.variance"].double().numpy())
    inputs = (stored(images) - weights["norm.mean"].double().numpy()) / deviation
    layers = [linear(weights, f"linear_{number}.") for number in (1, 2, 3)]
    expected = in_torch([layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2], torch.nn.Sigmoid()], inputs)
    assert np.allclose(column(tmp_path, "nsfw"), expected, atol=1e-5)


def test_a_head_of_unknown_layout_needs_an_activation_setting(tmp_path: Path) -> None:
    images = dataset(tmp_path / "out", 16, contract("ViT-B-32"))
    net = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4), torch.nn.ReLU())
    net.append(torch.nn.Linear(4, 1))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    with pytest.raises(ScoreError, match="has layers of sizes 16-8-4-1, but does not name the activation between them"):
        add(tmp_path / "out", "own", head=str(tmp_path / "net.pth"))
    add(tmp_path / "out", "own", head={"weights": str(tmp_path / "net.pth"), "activation": "relu"})
    assert np.allclose(column(tmp_path / "out", "own"), in_torch(list(net), stored(images)), atol=1e-5)


def test_a_head_that_names_its_model_refuses_others(tmp_path: Path) -> None:
    dataset(tmp_path / "out", 768, contract("ViT-L-14", "laion2b_s32b_b82k"))
    file = str(HEADS / "sa_0_4_vit_l_14_linear.pth")
    with pytest.raises(ScoreError, match="trained on embeddings of ViT-L-14:openai, but 'clip' is ViT-L-14:laion2b"):
        add(tmp_path / "out", "aesthetic", head=file)
    assert not (tmp_path / "out/columns").exists()
    add(tmp_path / "out", "aesthetic", head={"weights": file, "check_model": False})

    probe = tmp_path / "probe.safetensors"
    trained_on = HeadModel(("ViT-L-14",), "openai", "1" * 64)
    tensors = {"layers.0.weight": torch.ones(1, 768), "layers.0.bias": torch.zeros(1)}
    save_file(tensors, probe, metadata=head_metadata(trained_on, "none", "sigmoid"))
    assert read_head(probe).output == "sigmoid" and read_head(probe).model == trained_on
    with pytest.raises(ScoreError, match=r"trained on embeddings of ViT-L-14:openai"):
        add(tmp_path / "out", "probe", head=str(probe))


def test_a_head_of_the_wrong_width_is_refused(tmp_path: Path) -> None:
    dataset(tmp_path, 16, contract("ViT-B-32"))
    with pytest.raises(
        ScoreError, match=r"takes embeddings of 768 dimensions, but those of 'clip' have 16; .*--add-model ViT-L-14"
    ):
        add(tmp_path, "aesthetic", head=str(HEADS / "sa_0_4_vit_l_14_linear.pth"))


@pytest.mark.parametrize(
    ("sizes", "names", "right"),
    [
        ((768, 64, 512, 256, 1), "linear_{}", "ViT-L-14"),
        ((512, 32, 32, 1), "linear_{}", "ViT-B-32"),
        ((768, 1024, 128, 64, 16, 1), "layers.{}", "ViT-L-14"),
        ((512, 1024, 128, 64, 16, 1), "layers.{}", "ViT-B-32"),
    ],
)
def test_laions_layouts_are_accepted_only_for_openais_models(
    tmp_path: Path, sizes: tuple[int, ...], names: str, right: str
) -> None:
    numbers = (0, 3, 6, 9, 11) if "layers" in names else (1, 2, 3, 4)
    tensors = {} if "layers" in names else {"norm.mean": torch.zeros(sizes[0]), "norm.variance": torch.ones(sizes[0])}
    for number, width, out in zip(numbers, sizes, sizes[1:], strict=False):
        tensors[f"{names.format(number)}.weight"] = torch.ones(out, width)
        tensors[f"{names.format(number)}.bias"] = torch.zeros(out)
    save_file(tensors, tmp_path / "head.safetensors")
    dataset(tmp_path / "right", sizes[0], contract(right))
    assert add(tmp_path / "right", "head", head=str(tmp_path / "head.safetensors")).columns == ["head"]
    dataset(tmp_path / "other", sizes[0], contract("ViT-B-16-SigLIP-512", "webli"))
    with pytest.raises(ScoreError, match=f"trained on embeddings of {right}:openai, but 'clip' is ViT-B-16-SigLIP-512"):
        add(tmp_path / "other", "head", head=str(tmp_path / "head.safetensors"))


def test_weights_too_large_for_float32_are_refused_and_scores_too_large_are_counted_as_missing(tmp_path: Path) -> None:
    dataset(tmp_path / "out", 16, contract("ViT-B-32"))
    file, bias = tmp_path / "head.safetensors", torch.zeros(1, dtype=torch.float64)
    save_file({"weight": torch.full((1, 16), 1e200, dtype=torch.float64), "bias": bias}, file)
    with pytest.raises(ScoreError, match="'weight' has values beyond float32: the weights are broken"):
        add(tmp_path / "out", "head", head=str(file))
    large = {"0.weight": torch.full((16, 16), 1e30), "0.bias": torch.zeros(16)}
    save_file({**large, "1.weight": torch.full((1, 16), 1e30), "1.bias": torch.zeros(1)}, file)
    with pytest.raises(ScoreError, match="the layers multiply to more than float32 can represent"):
        add(tmp_path / "out", "head", head={"weights": str(file), "activation": "none"})
    result = add(tmp_path / "out", "head", head={"weights": str(file), "activation": "relu"})
    missing = int(np.isnan(column(tmp_path / "out", "head")).sum())
    assert missing > ROWS / 4 and result.rows_without == {"head": missing}


def test_public_heads_are_recognized_by_their_values() -> None:
    assert read_head(HEADS / "sa_0_4_vit_l_14_linear.pth").model == OPENAI_L14
    assert read_head(HEADS / "sac+logos+ava1-l14-linearMSE.pth").model == OPENAI_L14


class Attack:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


WEIGHT, BIAS = torch.ones(1, 16), torch.zeros(1)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": WEIGHT * torch.nan, "bias": BIAS}, "'weight' has NaN or infinite values"),
        ({"weight": torch.ones(3, 16), "bias": torch.zeros(3)}, "its last layer has 3 outputs; a head has one"),
        ({"weight": WEIGHT}, "'weight' is not part of a head"),
        ({"0.weight": torch.ones(4, 16), "0.bias": torch.zeros(4), "1.weight": WEIGHT, "1.bias": BIAS}, "do not fit"),
        ({"0.weight": WEIGHT}, "layer 0 has no bias"),
        ({"visual.conv1.weight": WEIGHT, "visual.conv1.bias": BIAS}, "is not part of a head"),
        ({"weight": WEIGHT, "bias": BIAS, "mean": torch.zeros(3), "variance": torch.ones(3)}, "width of the input"),
        ({"weight": WEIGHT, "bias": BIAS, "mean": torch.zeros(16), "variance": torch.zeros(16)}, "not positive"),
    ],
)
def test_weights_that_are_not_a_head_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ScoreError, match=message):
        read_head(tmp_path / "bad.safetensors")


def test_a_payload_is_never_unpickled(tmp_path: Path) -> None:
    torch.save({"weight": WEIGHT, "bias": Attack(tmp_path / "owned")}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Attack(tmp_path / "owned")))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(ScoreError, match=r"never unpickles objects|not a complete weights file"):
            read_head(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth", "empty.pth", "gone.pth", "folder.safetensors"])
def test_an_unreadable_file_is_reported_in_one_clear_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "empty.pth").touch()
    (tmp_path / "cut.pth").write_bytes((HEADS / "sa_0_4_vit_l_14_linear.pth").read_bytes()[:900])
    save_file({"weight": WEIGHT, "bias": BIAS}, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-9])
    with pytest.raises(ScoreError, match=r"^\S+: (cannot be read|not a complete weights file)") as caught:
        read_head(tmp_path / name)
    assert "\n" not in str(caught.value)
