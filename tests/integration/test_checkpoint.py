"""Tests a CLIP checkpoint in the layout of transformers with `embed`, `verify`, `search` and `--add-model`.

The oracle is transformers.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import pairmill
from pairmill.jobs.add_model import add_model
from pairmill.jobs.build import build
from tests.checkpoints import save_clip, save_siglip
from tests.integration.conftest import SHARED_DATA
from tests.integration.test_embed import embed_job, holds
from tests.tars import write_tar

CAPTION = "a photo of {} dogs on the beach"


def test_a_checkpoint_is_a_model_like_any_other(
    plain_loop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = save_clip(tmp_path / "clip")
    save_siglip(tmp_path / "siglip")
    found = sorted((SHARED_DATA / "pairs" / "cc_challenge18").glob("*.jpg"))[:6]
    write_tar(tmp_path / "in.tar", [member for n, path in enumerate(found) for member in (
        (f"{n}.jpg", path.read_bytes()), (f"{n}.txt", CAPTION.format(n).encode()))])  # fmt: skip
    monkeypatch.chdir(tmp_path)  # because the name of the model is a relative path
    build(embed_job(tmp_path / "out", tmp_path / "in.tar", models=[{"name": "clip", "alias": "mine"}]))
    holds(tmp_path / "out")

    table = pairmill.open(tmp_path / "out").table(["key", "similarity_mine"])
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "clip")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "clip")
    inputs = tokenizer([CAPTION.format(n) for n in range(6)], padding=True, return_tensors="pt")
    pixels = processor([Image.open(path).convert("RGB") for path in found], return_tensors="pt")
    with torch.no_grad():
        expected = (oracle(**inputs, **pixels).logits_per_image / oracle.logit_scale.exp()).diagonal().numpy()
    order = table["key"].cast("int64").to_numpy()
    assert np.abs(table["similarity_mine"].to_numpy() - expected[order]).max() < 5e-3  # pixels differ by rounding

    best = pairmill.search(tmp_path / "out", CAPTION.format(3), of="text", top=1).matches[0]
    assert (best.caption, best.score) == (CAPTION.format(3), pytest.approx(1, abs=2e-3))
    add_model(str(tmp_path / "out"), {"name": "siglip", "alias": "other"}, {"run": {"device": "cpu"}})
    holds(tmp_path / "out")
    assert np.isfinite(pairmill.open(tmp_path / "out").table(["similarity_other"])["similarity_other"].to_numpy()).all()
