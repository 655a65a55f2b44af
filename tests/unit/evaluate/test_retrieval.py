"""Tests retrieval against brute force, on embeddings of a real CLIP model and on synthetic ones with ties."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import pairmill
from pairmill.pipeline.evaluate import retrieval
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.labeled_rows import RowFilter
from pairmill.pipeline.evaluate.retrieval import RetrievalSet, picture_to_text, text_to_picture
from pairmill.pipeline.evaluate.retrieval_rows import read_retrieval
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.schemas.errors import JobError
from tests.unit.evaluate.embedded import ALIAS, uid_of, unit, write_embedded

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "clip_b32" / "flickr8k500_pairs"

Doubles = npt.NDArray[np.float64]


def real() -> tuple[Doubles, Doubles, list[str]]:
    """(image embeddings, text embeddings, SHA-256 of each row's picture) of 500 pairs with 100 pictures."""
    images, texts = (np.load(REAL / f"{name}_embeddings.npy").astype(np.float64) for name in ("image", "text"))
    with (REAL / "metadata.csv").open() as file:
        names = [row["image_id"] for row in csv.DictReader(file)]
    return images, texts, [hashlib.sha256(name.encode()).hexdigest() for name in names]


def brute_force(similarities: Doubles, matches: npt.NDArray[np.bool_]) -> list[float]:
    """R@1, R@5 and R@10, by sorting all similarities [queries, gallery]. If similarities tie, matches come first."""
    order = np.lexsort((~matches, -similarities), axis=1)
    hits = np.take_along_axis(matches, order, axis=1)
    return [float(hits[:, :k].any(axis=1).mean()) for k in (1, 5, 10)]


def made(seed: int, pictures: int = 40, captions: int = 130) -> RetrievalSet:
    """Embeddings with many duplicates, so that similarities tie."""
    rng = np.random.default_rng(seed)
    picture_of = np.concatenate([np.arange(pictures), rng.integers(0, pictures, captions - pictures)])
    images = rng.normal(size=(15, 6))[rng.integers(0, 15, pictures)]
    texts = rng.normal(size=(30, 6))[rng.integers(0, 30, captions)] + images[picture_of]
    return RetrievalSet(unit(images).astype(np.float16), unit(texts).astype(np.float16), picture_of)


def recalls(ranks: retrieval.Ranks) -> list[float]:
    return [ranks.recall_at(k) for k in (1, 5, 10)]


@pytest.mark.parametrize("tile", [(1, 1), (7, 3), (64, 130), (2_048, 4_096)])
@pytest.mark.parametrize("seed", [0, 1])
def test_any_tile_size_agrees_with_brute_force_even_with_ties(tile: tuple[int, int], seed: int) -> None:
    data = made(seed)
    similarities = retrieval.unit(data.captions) @ retrieval.unit(data.pictures).T
    matches = data.picture_of[:, None] == np.arange(len(data.pictures))
    own = np.take_along_axis(similarities, data.picture_of[:, None], axis=1)
    to_picture, to_text = text_to_picture(data, tile), picture_to_text(data, tile)
    assert recalls(to_picture) == brute_force(similarities, matches)
    assert recalls(to_text) == brute_force(similarities.T.copy(), matches.T.copy())
    assert (to_picture.equal == ((similarities == own) & ~matches).sum(axis=1)).all()
    best = np.where(matches, similarities, -2).max(axis=0)
    assert (to_text.equal == ((similarities == best) & ~matches).sum(axis=0)).all()
    assert to_picture.tied > 10 and to_text.tied > 0


def test_similarities_are_exact_in_any_order() -> None:
    rng = np.random.default_rng(5)
    vectors = retrieval.unit(unit(rng.normal(size=(50, 512))).astype(np.float16))
    whole = np.stack([[int(value) for value in row * 2**24] for row in vectors]).astype(object)
    assert ((vectors @ vectors.T) * 2.0**48 == (whole @ whole.T).astype(np.float64)).all()
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6


def test_pictures_that_equal_their_captions_are_always_found() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(30, 16))).astype(np.float16)
    data = RetrievalSet(vectors, vectors, np.arange(30))
    assert recalls(text_to_picture(data)) == recalls(picture_to_text(data)) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("shard_rows", [33, 500])
def test_recall_on_flickr8k_equals_brute_force(tmp_path: Path, shard_rows: int) -> None:
    images, texts, sha256 = real()
    write_embedded(tmp_path / "out", images, texts, shard_rows, {"sha256": sha256})
    found = pairmill.evaluate(tmp_path / "out").retrieval
    assert found is not None
    names = list(dict.fromkeys(sha256))
    matches = np.array([[name == each for name in names] for each in sha256])
    pictures = images[[sha256.index(name) for name in names]]
    one_way, other_way = (brute_force(each, each_match) for each, each_match in (
        (texts @ pictures.T, matches), ((texts @ pictures.T).T.copy(), matches.T.copy())
    ))  # fmt: skip
    assert (found.pictures, found.captions) == (100, 500)
    to_picture, to_text = found.text_to_picture, found.picture_to_text
    assert [to_picture.recall_at_1, to_picture.recall_at_5, to_picture.recall_at_10] == one_way
    assert [to_text.recall_at_1, to_text.recall_at_5, to_text.recall_at_10] == other_way
    assert round(to_picture.recall_at_1, 2) == 0.83
    assert found.mean_recall_at_1 == pytest.approx((one_way[0] + other_way[0]) / 2)


def test_a_sample_has_all_captions_of_its_pictures_and_does_not_depend_on_shards(tmp_path: Path) -> None:
    images, texts, sha256 = real()
    results = []
    for shard_rows in (50, 500):
        out = tmp_path / str(shard_rows)
        store = write_embedded(out, images, texts, shard_rows, {"sha256": sha256})
        sampled = read_retrieval(RowFilter(Snapshot.of(store)), ALIAS, 40)
        assert np.bincount(sampled.data.picture_of).tolist() == [5] * 40
        results.append(pairmill.evaluate(out, limit=40).retrieval)
    assert results[0] == results[1]
    assert results[0] is not None
    (note,) = results[0].notes
    about = int(note.removeprefix("sampled 40 of about ").split()[0])
    assert 60 < about < 160  # the exact number is 100


def test_captions_from_one_list_share_a_picture_and_missing_embeddings_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    images, texts = unit(rng.normal(size=(6, 8)))[[0, 0, 1, 1, 2, 3, 3, 4, 5]], unit(rng.normal(size=(9, 8)))
    texts[1] = np.nan
    images[4] = np.nan
    row_ids = ["0:0:0", "0:0:1", "0:1:0", "0:1:1", "0:2", "0:3", "0:4", "0:5", "1:0"]
    uids = [uid_of(row) for row in range(9)]
    uids[8] = uids[7]
    same = "ab" * 32
    sha256 = [None, None, None, None, None, same, same, None, None]
    write_embedded(tmp_path / "out", images, texts, 8, {"row_id": row_ids, "uid": uids, "sha256": sha256})
    found = pairmill.evaluate(tmp_path / "out").retrieval
    assert found is not None
    assert (found.pictures, found.captions) == (4, 6)
    assert list(found.notes) == [
        "1 row left out: no embedding of the picture",
        "1 row left out: no embedding of the caption",
        "1 row left out: another row has the same uid",
    ]


def test_a_subset_is_searched_alone(tmp_path: Path) -> None:
    images, texts, sha256 = real()
    width = [1 if row < 200 else 2 for row in range(500)]
    write_embedded(tmp_path / "out", images, texts, 100, {"sha256": sha256, "width": width})
    pairmill.select(tmp_path / "out", "few", steps="where: width == 1")
    found = pairmill.evaluate(tmp_path / "out", subset="few").retrieval
    assert found is not None and (found.pictures, found.captions) == (40, 200)


def test_datasets_with_nothing_to_compare_are_refused(tmp_path: Path) -> None:
    one = np.eye(4)[[0, 0]]
    write_embedded(tmp_path / "out", one, columns={"sha256": ["ab" * 32] * 2})
    with pytest.raises(EvaluateError, match="needs at least two pictures; found 1"):
        pairmill.evaluate(tmp_path / "out")
    with pytest.raises(EvaluateError, match="To evaluate another one, embed the dataset with it first: pairmill embed"):
        pairmill.evaluate(tmp_path / "out", model="ViT-L-14:openai")
    with pytest.raises(JobError, match="give a number from 2"):
        pairmill.evaluate(tmp_path / "out", limit=1)
