"""Tests the X-Robots-Tag header."""

import pytest

from pairmill.pipeline.fetch.optout import agent_token, opt_out_directive


@pytest.mark.parametrize(
    ("values", "directive"),
    [
        ([], None),
        (["all"], None),
        (["noai"], "noai"),
        (["NoAI, nofollow"], "noai"),
        (["nofollow", "noimageai"], "noimageai"),
        (["nofollow, noindex"], "noindex"),
        (["none"], "none"),
        (["noarchive, noimageindex"], "noimageindex"),
        (["noaiplease"], None),
        (["pairmill: noindex"], "noindex"),
        (["Pairmill: nofollow, noai"], "noai"),
        (["*: noai"], "noai"),
        (["googlebot: noindex"], None),
        (["googlebot: nofollow, noindex"], None),
        (["googlebot: noindex, pairmill: noai"], "noai"),
        (["googlebot: noindex", "noai"], "noai"),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], "noindex"),
        (["max-snippet: 20, noai"], "noai"),
        (["max-image-preview:none"], None),
        ([""], None),
        ([":noai"], None),
        (["nofollow; NoIndex"], "noindex"),
        (["all;noimageai"], "noimageai"),
        (["nofollow noindex"], "noindex"),
        (['"noai"'], "noai"),
        (["'nofollow, noai'"], "noai"),
        (["noai:"], "noai"),
        (["pairmill/0.1: noai"], "noai"),
        (["googlebot/2.1: noai; noindex nofollow"], None),
        (["unavailable_after: Fri, 25 Jun 2010 15:00:00 PST; noai"], "noai"),
    ],
)
def test_x_robots_tag_opts_out_by_directive_and_crawler(values: list[str], directive: str | None) -> None:
    assert opt_out_directive(values, agent_token("Pairmill/0.1 (+https://example.org)")) == directive


@pytest.mark.parametrize(
    "user_agent",
    [
        "Pairmill", "pairmill/0.1", " pairmill/0.1 ", "pairmill (+https://example.org)", "PairMill/0.1 Python/3.12",
        "pairmill crawler/0.1", "pairmill, pictures@example.org", "pairmill; +https://example.org", "pairmill(x)",
    ],
)  # fmt: skip
def test_however_the_user_agent_continues_its_first_name_is_ours(user_agent: str) -> None:
    assert agent_token(user_agent) == "pairmill"
