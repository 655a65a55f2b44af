"""Invariant of open_clip's models: weights run with the activation that their tag names, whatever the architecture's
default is. The oracle is open_clip's own architecture with that activation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from open_clip.factory import _MODEL_CONFIGS
from open_clip.pretrained import _PRETRAINED

from pairmill.jobs.build import described, prepare
from pairmill.jobs.check import check, model_warnings
from pairmill.jobs.job_file import fingerprint, load_job
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.encode.clip_model import ClipModel, model_of
from pairmill.pipeline.encode.model_error import ModelError
from pairmill.pipeline.encode.weights import find_weights, needs_quick_gelu, resolve_weights
from pairmill.pipeline.source.plan import make_plan
from pairmill.schemas.batch import ScoreContract
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.record import JobRecord
from tests.checkpoints import save_clip

RUN = RunConfig(device="cpu")
NAME, TAG = "small-vit", "trained_with_quick_gelu"
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
CAPTIONS = ["a photo of a dog", "red"]


@pytest.fixture
def oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.nn.Module]:
    """A model with QuickGELU, whose weights are in the Hub's cache, under a tag of an architecture with GELU."""
    tag = {"hf_hub": "org/small/", "quick_gelu": True, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    monkeypatch.setitem(_MODEL_CONFIGS, NAME, ARCHITECTURE)
    monkeypatch.setitem(_PRETRAINED, NAME, {TAG: tag})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(7)
    model = open_clip.create_model(NAME, force_quick_gelu=True).eval()
    with torch.no_grad():
        for weight in (each for each in model.parameters() if each.ndim > 1):
            weight.copy_(torch.randn(weight.shape) * 0.5)
    repository = tmp_path / "hub" / "models--org--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    safetensors.torch.save_file(model.state_dict(), repository / "snapshots" / "abc" / "open_clip_model.safetensors")
    return model  # type: ignore[return-value]


@pytest.fixture
def job(tmp_path: Path) -> BuildJob:
    (tmp_path / "in.csv").write_text("url,caption\nhttp://a.invalid/1.jpg,a picture\n")
    model = {"name": NAME, "pretrained": TAG}
    return load_job(None, {"source.paths": [str(tmp_path / "in.csv")], "output": str(tmp_path), "models": [model]})


def embedded(model: torch.nn.Module) -> npt.NDArray[np.float32]:
    tokens = open_clip.SimpleTokenizer(context_length=16)(CAPTIONS)
    with torch.inference_mode():
        return torch.nn.functional.normalize(model.encode_text(tokens), dim=-1).numpy()  # type: ignore[operator, no-any-return]


def test_weights_run_with_the_activation_that_their_tag_names(
    oracle: torch.nn.Module, job: BuildJob, tmp_path: Path
) -> None:
    checked, _ = check(job.model_copy(update={"output": str(tmp_path / "out")}))
    (config,) = checked.models
    model = ClipModel(config, RUN)
    np.testing.assert_allclose(model.encode_captions(CAPTIONS), embedded(oracle), atol=1e-5)
    again = model_of(model.contract, RUN)  # as search, evaluate and verify load it
    np.testing.assert_allclose(again.encode_captions(CAPTIONS), embedded(oracle), atol=1e-5)
    with_gelu = ClipModel(job.models[0], RUN).encode_captions(CAPTIONS)  # as open_clip loads this name and tag
    assert np.abs(with_gelu - embedded(oracle)).max() > 1e-3
    assert "warning" not in described(*prepare(job.model_copy(update={"output": str(tmp_path / "out")})))


def test_an_output_from_before_0_2_goes_on_with_the_activation_that_it_was_started_with_and_says_so(
    oracle: torch.nn.Module, job: BuildJob, tmp_path: Path
) -> None:
    job = job.model_copy(update={"output": str(tmp_path / "out")})
    checked, _ = check(job)
    old = checked.model_copy(update={"models": [checked.models[0].model_copy(update={"quick_gelu": False})]})
    make_plan(JobRecord(old, fingerprint(old, resolve_weights(old.models))), Store(job.output))
    pipeline, plan = prepare(job)
    assert pipeline.job.models == old.models
    assert "were started before 0.2, with GELU instead of QuickGELU" in described(pipeline, plan)


def test_embeddings_with_different_activations_are_in_different_spaces() -> None:
    def space(name: str, quick_gelu: bool, weights: str = "0" * 64) -> str:
        return ScoreContract("m", name, "openai", weights, {}, "float32", 77, quick_gelu=quick_gelu).space

    assert space("ViT-B-32", True) == space("ViT-B-32-quickgelu", False) == space("ViT-B-32-quickgelu", True)
    assert len({space("ViT-B-32", True), space("ViT-B-32", False), space("ViT-B-32", True, "1" * 64)}) == 3


def test_only_tags_of_weights_trained_with_quick_gelu_change_the_activation() -> None:
    for name in open_clip.list_models():
        for tag in open_clip.list_pretrained_tags_by_model(name):
            says = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
            has = bool((open_clip.get_model_config(name) or {}).get("quick_gelu"))
            config = ModelConfig(name=name, pretrained=tag, alias="m")
            assert needs_quick_gelu(config) == (says and not has), config
    assert needs_quick_gelu(ModelConfig(name="ViT-B-32", pretrained="openai"))
    assert not needs_quick_gelu(ModelConfig(name="ViT-B-32-quickgelu", pretrained="openai"))
    assert not needs_quick_gelu(ModelConfig(name="ViT-B-32", pretrained="laion2b_s34b_b79k"))
    assert not needs_quick_gelu(ModelConfig(name="ViT-B-32", pretrained=__file__))
    assert not needs_quick_gelu(ModelConfig(name="tiny"))


def test_a_build_warns_if_a_file_does_not_say_what_pixels_its_weights_need() -> None:
    def warnings(name: str, pretrained: str) -> list[str]:
        model = {"name": name, "pretrained": pretrained}
        return model_warnings(BuildJob.model_validate({"source": {"paths": "a"}, "output": "b", "models": [model]}))

    (warning,) = warnings("ViT-B-16-SigLIP", __file__)  # whose mean is 0.5
    assert "all weights of ViT-B-16-SigLIP that open_clip knows (webli) need another one" in warning
    assert warnings("ViT-B-16-SigLIP", "webli") == []
    assert warnings("ViT-B-32", __file__) == []
    assert warnings("ViT-L-14", __file__) == []  # only some of its tags differ


def test_the_activation_of_a_model_in_the_layout_of_transformers_is_that_of_its_config(tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    with pytest.raises(ModelError, match=r"its config\.json gives the activation; leave out `quick_gelu`"):
        find_weights(ModelConfig(name=str(tmp_path / "clip"), alias="m", quick_gelu=True))
