"""Files of heads, targets and classes that others made: each is read as it is meant, or refused with a line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pairmill.pipeline.score.class_embeddings import read_classes
from pairmill.pipeline.score.head_weights import read_head
from pairmill.pipeline.score.kind import ScoreError
from pairmill.schemas.job.scores import ClassesScore
from tests.unit.scores.embedded import add, unit_vectors, write_embedded

WEIGHT, BIAS = torch.ones(1, 8), torch.zeros(1)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(1, 1).expand(1, 1 << 42), "bias": BIAS}, "larger than what the file holds"),
        ({"weight": WEIGHT.to_sparse(), "bias": BIAS}, "not a plain array"),
        ({"weight": torch.empty(1, 8, device="meta"), "bias": BIAS}, "not a plain array"),
        ({"weight": WEIGHT.to(torch.complex64), "bias": BIAS}, "not a plain array"),
        ({"weight": torch.tensor(1.0), "bias": BIAS}, "do not fit together"),
        ({"a.0.weight": WEIGHT, "a.0.bias": BIAS, "b.0.weight": WEIGHT, "b.0.bias": BIAS}, "two layers 0"),
    ],
    ids=["expanded", "sparse", "meta", "complex", "scalar", "twice"],
)
def test_tensors_that_are_no_head_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    torch.save(tensors, tmp_path / "head.pth")
    with pytest.raises(ScoreError, match=message):
        read_head(tmp_path / "head.pth")


def test_a_head_of_parameters_is_read(tmp_path: Path) -> None:
    torch.save(dict(torch.nn.Linear(8, 1).named_parameters()), tmp_path / "head.pth")
    assert read_head(tmp_path / "head.pth").sizes == (8, 1)


def test_arrays_that_are_no_npy_are_refused(tmp_path: Path) -> None:
    write_embedded(tmp_path / "out", unit_vectors(1, 50), unit_vectors(2, 50))
    path = tmp_path / "targets.npy"
    np.savez(tmp_path / "targets.npz", unit_vectors(3, 5))
    archive = (tmp_path / "targets.npz").read_bytes()
    for data in (archive, archive[:20], b"\x93NUMPY\x01\x00\x46\x00" + b"(" * 70, b"", b"\x80\x04N."):
        path.write_bytes(data)
        with pytest.raises(ScoreError, match=r"targets\.npy: cannot be read as an array of embeddings"):
            add(tmp_path / "out", "sim", norm_sim=str(path))
    np.save(path, np.full((3, 16), 1e300))
    with pytest.raises(ScoreError, match="has no valid embedding"):
        add(tmp_path / "out", "sim", norm_sim=str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a\\ud800": "x", "b": "y"}', "is no name of a class"),
        ('{"": "x", "b": "y"}', "is no name of a class"),
        ('{"a": "x\\udfff", "b": "y"}', "the class 'a' should have"),
        ('{"a": ["x", " "], "b": "y"}', "the class 'a' should have"),
    ],
)
def test_classes_that_are_no_text_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ScoreError, match=message):
        read_classes(ClassesScore(names=str(tmp_path / "classes.json")))


def test_a_name_with_nul_is_no_file() -> None:
    with pytest.raises(ScoreError, match="cannot be read"):
        read_classes(ClassesScore(names="a\0b"))
