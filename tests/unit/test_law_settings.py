"""Invariant: `--set` sets a text field to exactly the typed characters, whatever they mean in YAML."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pairmill.jobs.job_file import load_job

JOB = {"source.paths": ["urls.csv"], "output": "out"}
YAML_WORDS = ["no", "true", "1e3", "012", "0x1f", "~", "*a", "&a", "a: b", "[a", "{", "- a", "a #b", "!!int 3", "|"]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1) | st.sampled_from(YAML_WORDS))
def test_set_gives_a_text_field_exactly_the_typed_characters(text: str) -> None:
    assume(text == text.strip() and text not in ("null", "Null", "NULL"))
    assume(len(text) == 1 or text[0] != text[-1] or text[0] not in "'\"")
    required = {**JOB, "models": [{"name": "tiny"}]}
    names = ["source.caption_column", "source.image_column", "models.0.pretrained", "run.address"]
    job = load_job(None, required, [f"{name}={text}" for name in names])
    assert (job.source.caption_column, job.source.image_column, job.run.address) == (text, text, text)
    assert job.models[0].pretrained == text


@pytest.mark.parametrize("delimiter", ["|", ",", ";", ":", "~", "*", "#", "&", "!", "%", "@", "-", "?", ">", " ", "\t"])
def test_set_accepts_every_delimiter_plain_or_quoted(delimiter: str) -> None:
    for written in (delimiter, f"'{delimiter}'", json.dumps(delimiter)):
        assert load_job(None, JOB, [f"source.delimiter={written}"]).source.delimiter == delimiter


@pytest.mark.parametrize("null", ["", "null"])
def test_a_text_field_is_set_to_null_by_an_empty_value_or_null(null: str) -> None:
    given = {**JOB, "source.delimiter": ";"}
    assert load_job(None, given, [f"source.delimiter={null}"]).source.delimiter is None
