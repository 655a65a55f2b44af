"""Invariant of models in open_clip's layout: a folder that does not make a valid model is refused with one line."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pairmill.jobs.check import check
from pairmill.jobs.job_file import fingerprint
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.encode.clip_model import ClipModel
from pairmill.pipeline.encode.model_error import ModelError
from pairmill.pipeline.encode.weights import TINY_FOLDER, input_side, resolve_weights, useless_tag
from pairmill.pipeline.source.plan import make_plan
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.record import JobRecord

CONFIG, WEIGHTS = "open_clip_config.json", "model.safetensors"
Change = Callable[[Path], object]


def config_with(section: str, **values: object) -> Change:
    def change(folder: Path) -> None:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        config[section].update(values)
        (folder / CONFIG).write_text(json.dumps(config))

    return change


def config_of(text: bytes) -> Change:
    return lambda folder: (folder / CONFIG).write_bytes(text)


def tensors_with(**changed: torch.Tensor) -> Change:
    def change(folder: Path) -> None:
        tensors = {**safetensors.torch.load_file(folder / WEIGHTS), **changed}
        (folder / WEIGHTS).unlink()
        safetensors.torch.save_file(tensors, folder / WEIGHTS)

    return change


def pickled(content: object) -> Change:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return change


BROKEN: dict[str, tuple[Change, str]] = {
    "no JSON": (config_of(b"{"), CONFIG),
    "no UTF-8": (config_of(b"\xff\xfe{}"), CONFIG),
    "no object": (config_of(b"[]"), CONFIG),
    "no model_cfg": (config_of(b"{}"), "has no object `model_cfg`"),
    "a setting of a later version": (config_with("model_cfg", later=1), "unexpected keyword argument"),
    "text for a number": (config_with("model_cfg", vision_cfg={"width": "big"}), "do not load: TypeError"),
    "no text tower": (config_with("model_cfg", text_cfg=None), "do not load: TypeError"),
    "an interpolation of Pillow": (config_with("preprocess_cfg", interpolation="lanczos"), "do not load: Assertion"),
    "no tensors": (pickled({}), "do not load"),
    "a list": (pickled([1]), "do not load"),
    "numbers for names": (pickled({1: torch.zeros(2)}), "do not load"),
    "an infinite scale": (tensors_with(logit_scale=torch.tensor(math.inf)), "logit_scale is inf"),
    "a scale that is NaN": (tensors_with(logit_scale=torch.tensor(math.nan)), "logit_scale is nan"),
    "a scale that overflows": (tensors_with(logit_scale=torch.tensor(1_000.0)), "logit_scale is 1000.0"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_makes_no_valid_model_is_refused_with_one_line(what: str, tmp_path: Path) -> None:
    change, message = BROKEN[what]
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(TINY_FOLDER / name, folder / name)
    change(folder)
    with pytest.raises(ModelError, match=message) as error:
        ClipModel(ModelConfig(name=str(folder), alias="m"), RunConfig(device="cpu"))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tiny", str(TINY_FOLDER)])
def test_weights_given_for_a_model_that_includes_its_own_are_refused_unless_the_output_was_started_with_them(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("url,caption\nhttp://a.invalid/1.jpg,a picture\n")
    source, output = {"paths": [str(tmp_path / "in.csv")]}, str(tmp_path / "out")
    models = [{"name": name, "pretrained": "mine.pt", "alias": "m", "dtype": "float32"}]
    job = BuildJob.model_validate({"source": source, "output": output, "models": models})
    with pytest.raises(JobError, match=r"includes its weights; leave out `pretrained` \('mine\.pt'\)"):
        check(job)
    old = fingerprint(job, resolve_weights(job.models))
    make_plan(JobRecord(job, old), Store(output))
    assert check(job)[1] == old


def test_a_tag_after_the_name_of_a_repository_has_no_effect() -> None:
    assert "leave out `pretrained`" in (
        useless_tag(ModelConfig(name="hf-hub:org/model", pretrained="a", alias="m")) or ""
    )
    assert useless_tag(ModelConfig(name="hf-hub:org/model", alias="m")) is None
    assert useless_tag(ModelConfig(name="ViT-B-32", pretrained="openai", alias="m")) is None


@pytest.mark.parametrize(("side", "known"), [(64, 64), ([64, 32], 32), ("64", 0), ({}, 0), (None, 0), ([], 0)])
def test_the_side_of_a_model_is_known_if_its_config_gives_it_as_numbers(
    side: object, known: int, tmp_path: Path
) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": {"vision_cfg": {"image_size": side}}}))
    assert input_side(ModelConfig(name=str(tmp_path), alias="m")) == known
