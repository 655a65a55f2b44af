"""Invariant: weights files that cannot be complete are refused before anything starts. The message names the file."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from pairmill.pipeline.encode.weights import TINY_FOLDER, ModelError, resolve_weights
from pairmill.schemas.job.models import ModelConfig

SAFETENSORS = next(TINY_FOLDER.glob("*.safetensors")).read_bytes()


@pytest.mark.parametrize("part", [0, 7, 100, len(SAFETENSORS) // 2, len(SAFETENSORS) - 1])
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_law_weights_that_are_truncated_raise_a_clear_error(name: str, part: int, tmp_path: Path) -> None:
    shutil.copy(TINY_FOLDER / "open_clip_config.json", tmp_path)
    whole = SAFETENSORS
    if name.endswith(".bin"):
        torch.save({"weight": torch.zeros(1_000)}, tmp_path / name)
        whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole)
    assert resolve_weights([ModelConfig(name=str(tmp_path))])
    (tmp_path / name).write_bytes(whole[: part * len(whole) // len(SAFETENSORS)])
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path / name}: not a complete weights file")):
        resolve_weights([ModelConfig(name=str(tmp_path))])
