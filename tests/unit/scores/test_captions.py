"""Tests the caption scores that follow conventions: syllables, boilerplate, languages, and lists of toxic words."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pairmill.pipeline.check.report import VerifyReport
from pairmill.pipeline.check.rescore_columns import rescore_columns
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.encode.count_tokens import TokenCounter, token_counter
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.caption.measures import Captions, boilerplate, language, readability
from pairmill.pipeline.score.kind import ScoreError
from pairmill.pipeline.score.prepare import prepared
from pairmill.pipeline.score.score_shard import ScoreTask, score_shard
from pairmill.pipeline.select.tasks import LocalTasks
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig
from tests.checkpoints import clip_tokenizer, save_clip
from tests.committed_shards import pair, reject, write_dataset

RUN = RunConfig(device="cpu")

SYLLABLES = {  # according to the CMU Pronouncing Dictionary
    1: "a cat walked makes dressed the stones street jumped caught he me",
    2: "table tables boxes wanted beaches yellow wooden houses reflects people garden",
    3: "umbrella bicycle photograph computer elephant telephone",
    4: "photographer territory television",
}


def readability_of(texts: list[str | None]) -> list[float | None]:
    (column,) = readability(Captions(pa.array(texts, pa.string())))
    return column.to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", SYLLABLES)
def test_syllables_are_counted_as_in_a_dictionary(count: int) -> None:
    words = SYLLABLES[count].split()
    wrong = [
        word
        for word, ease in zip(words, readability_of(list(words)), strict=True)
        if ease != pytest.approx(206.835 - 1.015 - 84.6 * count, abs=1e-3)
    ]
    assert not wrong


def test_readability_counts_sentences_and_needs_a_latin_letter() -> None:
    two, one, *rest = readability_of(["A cat. The cat sat!", "A cat the cat sat", "猫 12 !!", "", None])
    assert two == pytest.approx(206.835 - 1.015 * 5 / 2 - 84.6, abs=1e-3)
    assert one == pytest.approx(206.835 - 1.015 * 5 - 84.6, abs=1e-3)
    assert rest == [None] * 3


def test_boilerplate_is_a_share_of_the_caption_or_1_for_captions_that_rules_drop() -> None:
    shares = {
        "Image": 1,
        "Click to enlarge": 1,
        "click to enlarge: a dog": 14 / 18,
        "IMG_1234.jpg": 1,
        "2020-01-01": 1,
        "https://example.com/a": 1,
        "two dogs on a beach": 0,
        "...": None,
    }
    (column,) = boilerplate(Captions(pa.array([*shares, None])))
    assert column.to_pylist() == [*(None if share is None else pytest.approx(share) for share in shares.values()), None]


def test_the_language_is_detected_with_its_probability() -> None:
    codes, scores = language(Captions(pa.array(["a dog runs on the beach", "ein Hund am Strand", "", None])))
    assert codes.to_pylist() == ["en", "de", None, None]
    assert scores.type == pa.float32() and all(score > 0.5 for score in scores.to_pylist()[:2])


def test_tokens_of_any_tokenizer_are_counted_up_to_its_context() -> None:
    import torch

    def tokenize(texts: list[str]) -> torch.Tensor:  # start 8, a 5 for each word, end 9, padding 0
        rows = [[8, *[5] * len(text.split()[:4]), 9] for text in texts]
        return torch.tensor([row + [0] * (6 - len(row)) for row in rows])

    def like_siglip(texts: list[str]) -> torch.Tensor:  # pads with the end token
        rows = [[*[5] * len(text.split()[:5])] for text in texts]
        return torch.tensor([row + [1] * (6 - len(row)) for row in rows])

    texts = ["", "a b", "a b c", "a b c d", "a b c d e f g"]
    counts, is_full = TokenCounter(tokenize, 6)(texts)
    assert counts.tolist() == [2, 4, 5, 6, 6] and is_full.tolist() == [False] * 3 + [True] * 2
    counts, is_full = TokenCounter(like_siglip, 6)(texts)
    assert counts.tolist() == [1, 3, 4, 5, 6] and is_full.tolist() == [False] * 4 + [True]
    assert token_counter(ModelConfig(name="tiny")).context_length == 32


def test_token_counts_of_a_checkpoint_equal_those_of_transformers(tmp_path: Path) -> None:
    save_clip(tmp_path)
    count, tokenizer = token_counter(ModelConfig(name=str(tmp_path))), clip_tokenizer()
    texts = ["", "a dog", "a red bird on a branch"]
    expected = [min(len(tokenizer(text).input_ids), count.context_length) for text in texts]
    counts, is_full = count(texts)
    assert counts.tolist() == expected
    assert is_full.tolist() == [length == count.context_length for length in expected]


def test_a_dataset_is_scored_and_verified_with_any_shard_size(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("# mild\r\nhell\r\n\nbloody  hell\n")
    captions = [f"what the bloody hell number {n}" if n % 3 else f"a red bird on a branch {n}" for n in range(12)]
    score = {"measures": ["toxic", "bits_per_character", "tokens", "words"], "toxic_words": str(tmp_path / "words.txt")}
    score["model"] = "tiny"
    found = []
    for cut in (6, 4):
        rows = [pair(caption, uid=f"{n:032x}") for n, caption in enumerate(captions)]
        shards = [rows[start : start + cut] for start in range(0, 12, cut)]
        store = write_dataset(tmp_path / str(cut), [[*shard, reject("gone")] for shard in shards])
        found.append(_scored(store, score))
        report = VerifyReport()
        assert not list(rescore_columns(Snapshot.of(store), 4, report))
        assert report.scores_recomputed >= 4
    assert found[0] == found[1]
    assert {row["c_toxic"] for row in found[0]} == {0, 1}
    assert {row["c_tokens"] for row in found[0]} == {8, 9}  # includes the start and end tokens, and one token per digit


@pytest.mark.parametrize(
    ("term", "caption"),
    [
        ("ΛΌΓΟΣ", "ο λόγος"),
        ("λόγος", "Ο ΛΌΓΟΣ"),
        ("straße", "DIE STRASSE"),
        ("STRASSE", "die Straße"),
        (" #MeToo", "so #metoo"),
        ("eﬃgy", "an Effigy"),
    ],
)
def test_terms_are_found_in_any_case(term: str, caption: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(f"#metoo\n{term}\n", encoding="utf-8")
    store = write_dataset(tmp_path / "out", [[pair(caption), pair("the rest", uid="1" * 32)]])
    scored = _scored(store, {"measures": ["toxic", "words"], "toxic_words": str(tmp_path / "words.txt")})
    assert sorted(row["c_toxic"] for row in scored) == [0, 1]


def _scored(store: Store, captions: dict[str, object]) -> list[dict[str, object]]:
    score, tasks, snapshot = ScoreConfig.model_validate({"captions": captions}), LocalTasks(), Snapshot.of(store)
    card = prepared(snapshot, "c", score, tasks, RUN)
    for shard, generation in snapshot.generations:
        assert score_shard(ScoreTask(store, "c", (), RUN), shard, generation) is None
    prepared(Snapshot.of(store), "c", score, tasks, RUN)
    with pytest.raises(ScoreError, match="already has a different score 'c'"):
        prepared(Snapshot.of(store), "c", ScoreConfig.model_validate({"captions": "words"}), tasks, RUN)
    scored = Snapshot.of(store)
    columns = ["uid", *(column.name for column in card.columns)]
    rows = [row for shard in scored.chunk.shards for row in scored.read(shard, columns).to_pylist()]
    return sorted((row for row in rows if row["c_words"] is not None), key=lambda row: row["uid"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "not UTF-8"),
        (b"# nothing\n", "has no terms"),
        (b"a" * ((16 << 20) + 1), "larger than 16 MiB"),
    ],
)
def test_a_file_that_is_not_a_list_of_words_is_refused(content: bytes | None, problem: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "words.txt").write_bytes(content)
    store = write_dataset(tmp_path / "out", [[pair("a dog")]])
    score = ScoreConfig.model_validate({"captions": {"measures": "toxic", "toxic_words": str(tmp_path / "words.txt")}})
    with pytest.raises(ScoreError, match=problem):
        prepared(Snapshot.of(store), "c", score, LocalTasks(), RUN)


@pytest.mark.parametrize(
    ("captions", "problem"),
    [
        ("toxic", "both the measure toxic and the file"),
        ({"measures": "words", "toxic_words": "a.txt"}, "both the measure toxic and the file"),
        ("words, words", "each measure only once"),
        ({"measures": "words", "model": "tiny"}, "only with the measure tokens"),
        ("wit", "Input should be"),
        ([], "at least 1 item"),
    ],
)
def test_contradictory_settings_are_refused(captions: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ScoreConfig.model_validate({"captions": captions})
