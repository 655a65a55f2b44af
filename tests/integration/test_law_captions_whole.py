"""Invariant: the whole caption is encoded, up to the length of the model's context, counted in the model's tokens.

Oracle: open_clip's own tokenizer on the whole text.
"""

import open_clip
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairmill.pipeline.encode.byte_pairs import merged
from pairmill.pipeline.encode.truncate_caption import CaptionTokenizer, beginning
from tests.integration.conftest import SHARED_DATA

CLIP = open_clip.get_tokenizer("ViT-B-32")
CONTEXTS = [16, 77, 256]
tokenizers = {}
for length in CONTEXTS:
    ours, theirs = open_clip.SimpleTokenizer(context_length=length), open_clip.SimpleTokenizer(context_length=length)
    tokenizers[length] = (CaptionTokenizer(ours, length), theirs)

words = st.text(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=12) | st.sampled_from(
    ["😂😂😂😂", "the", "house", "1234", "!!!", "日本語の文章", "----------------", "🇺🇸🇺🇸🇺🇸"]
)
captions = st.lists(words, min_size=1, max_size=40).map(" ".join)


@given(captions, st.integers(1, 400), st.sampled_from(CONTEXTS))
def test_tokens_are_those_of_the_whole_caption(caption: str, repeats: int, context: int) -> None:
    whole = " ".join([caption] * min(repeats, 1 + 20_000 // len(caption)))
    tokenize, oracle = tokenizers[context]
    found = tokenize([whole, "short", caption])
    assert found.tolist() == oracle([whole, "short", caption]).tolist()


@given(st.text(st.sampled_from("aeilnorst'") | st.characters(exclude_categories=["Cs"]), min_size=2, max_size=300))
@settings(max_examples=settings.default.max_examples * 2)
def test_long_words_are_merged_as_open_clip_merges_them(text: str) -> None:
    word = "".join(CLIP.byte_encoder[byte] for byte in text.replace(" ", "").encode())
    if len(word) > 1:
        assert " ".join(merged(word, CLIP.bpe_ranks)) == CLIP.bpe(word)


def test_a_hostile_word_of_a_quarter_megabyte_does_not_fill_the_cache() -> None:
    tokenize, _ = tokenizers[256]
    before = len(tokenize.tokenize.cache)
    found = tokenize(["a" * 262_144, "ab" * 131_072])
    assert (found != 0).sum(dim=1).tolist() == [256, 256]
    assert len(tokenize.tokenize.cache) == before


@pytest.mark.parametrize("text", ["", "a", "a b", "ab cd ef", "日本語"])
def test_text_is_cut_to_a_number_of_bytes_without_splitting_a_character(text: str) -> None:
    for num_bytes in range(1, 12):
        start = beginning(text, num_bytes)
        assert text.startswith(start)
        assert len(start.encode()) <= num_bytes


def test_captions_of_226_tokens_are_not_cut_if_the_context_has_256() -> None:
    texts = pq.read_table(SHARED_DATA / "cases/long_captions.parquet")["text"].to_pylist()
    tokenize, oracle = tokenizers[256]
    found = tokenize(texts)
    assert found.tolist() == oracle(texts).tolist()
    assert (found[0] != 0).sum() > 220
    assert found[0].tolist() != found[1].tolist()
