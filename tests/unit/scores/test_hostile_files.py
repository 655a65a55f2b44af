"""Tests untrusted files of heads, targets and classes: each is read as intended or refused with one clear line."""

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pairmill.pipeline.encode.model_error import ModelError
from pairmill.pipeline.encode.transformers_layout import load
from pairmill.pipeline.score.class_embeddings import read_classes
from pairmill.pipeline.score.head_weights import read_head
from pairmill.pipeline.score.kind import ScoreError
from pairmill.schemas.job.scores import ClassesScore
from tests.unit.scores.embedded import add, unit_vectors, write_embedded

WEIGHT, BIAS = torch.ones(1, 8), torch.zeros(1)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(1, 1).expand(1, 1 << 42), "bias": BIAS}, "larger than its data in the file"),
        ({"weight": WEIGHT.to_sparse(), "bias": BIAS}, "not a plain array"),
        ({"weight": torch.empty(1, 8, device="meta"), "bias": BIAS}, "not a plain array"),
        ({"weight": WEIGHT.to(torch.complex64), "bias": BIAS}, "not a plain array"),
        ({"weight": torch.tensor(1.0), "bias": BIAS}, "do not fit together"),
        (
            {"a.0.weight": WEIGHT, "a.0.bias": BIAS, "b.0.weight": WEIGHT, "b.0.bias": BIAS},
            "two layers with the number 0",
        ),
    ],
    ids=["expanded", "sparse", "meta", "complex", "scalar", "twice"],
)
def test_tensors_that_are_not_a_head_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    torch.save(tensors, tmp_path / "head.pth")
    with pytest.raises(ScoreError, match=message):
        read_head(tmp_path / "head.pth")


def test_a_head_saved_as_named_parameters_is_read(tmp_path: Path) -> None:
    torch.save(dict(torch.nn.Linear(8, 1).named_parameters()), tmp_path / "head.pth")
    assert read_head(tmp_path / "head.pth").sizes == (8, 1)


def test_a_small_file_that_expands_to_a_large_head_is_refused_before_it_expands(tmp_path: Path) -> None:
    numbers = 1 << 21
    torch.save({"weight": torch.zeros(1, numbers), "bias": BIAS}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "z.pth", "w", 8) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    shared = torch.zeros(1, numbers)
    torch.save({f"layers.{number}.weight": shared.view(1, -1) for number in range(60)}, tmp_path / "shared.pth")
    for name, message in (
        ("z.pth", "it is compressed; save it with torch.save"),
        ("shared.pth", "too many for a head"),
    ):
        tracemalloc.start()
        with pytest.raises(ScoreError, match=message):
            read_head(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < numbers
        tracemalloc.stop()


def test_any_damage_to_a_pickle_is_reported_in_one_clear_line(tmp_path: Path) -> None:
    """Covers both formats of torch.save, for heads and for checkpoints."""
    rng, path, seen = np.random.default_rng(0), tmp_path / "f.pth", 0
    for is_zip in (False, True):
        torch.save({"weight": WEIGHT, "bias": BIAS}, tmp_path / "ok.pth", _use_new_zipfile_serialization=is_zip)
        whole = (tmp_path / "ok.pth").read_bytes()
        cuts = [whole[:length] for length in range(1, len(whole), 1 + len(whole) // 80)]
        for data in [*cuts, *(_changed(rng, whole) for _ in range(60))]:
            path.write_bytes(data)
            for read, error in ((read_head, ScoreError), (load._read, ModelError)):
                try:
                    read(path)
                except error as caught:
                    seen += 1
                    assert str(caught).startswith(str(path)) and "\n" not in str(caught)
    assert seen > 200


def _changed(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, min(len(data), 700), rng.integers(1, 4)):
        changed[place] = rng.integers(0, 256)
    return bytes(changed)


def test_arrays_that_are_not_npy_files_are_refused(tmp_path: Path) -> None:
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
        ('{"a\\ud800": "x", "b": "y"}', "is not a valid class name"),
        ('{"": "x", "b": "y"}', "is not a valid class name"),
        ('{"a": "x\\udfff", "b": "y"}', "the class 'a' must have"),
        ('{"a": ["x", " "], "b": "y"}', "the class 'a' must have"),
    ],
)
def test_classes_that_are_not_text_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ScoreError, match=message):
        read_classes(ClassesScore(names=str(tmp_path / "classes.json")))


def test_only_newlines_end_the_name_of_a_class(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("a dog\r\n\na\u2028cat\x85\x1cb\n".encode())
    classes = read_classes(ClassesScore(names=str(tmp_path / "names.txt")))
    assert [name for name, _ in classes] == ["a dog", "a\u2028cat\x85\x1cb"]


def test_a_file_name_with_nul_is_refused() -> None:
    with pytest.raises(ScoreError, match="cannot be read"):
        read_classes(ClassesScore(names="a\0b"))
