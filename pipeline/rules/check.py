"""Checks the rules before the first row is read."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.rules.base import SourceRules
from pairmill.pipeline.rules.blocklists import DigestKind, load_blocklist
from pairmill.pipeline.rules.caption import blocked_term_patterns
from pairmill.pipeline.rules.custom import load_custom_rule
from pairmill.pipeline.rules.language import LANGUAGES
from pairmill.pipeline.rules.url import host_set

_NOUNS: dict[DigestKind, str] = {"url": "URL", "md5": "MD5", "sha256": "SHA-256"}


def check_rules(rules: SourceRules, search: Path | None = None) -> None:
    """Raise ValueError, with one line per problem, if the rules cannot run.

    Reads the blocklists, loads the custom rules (`search`: see `load_custom_rule`), and checks languages, hosts and
    terms.
    """
    checks: list[tuple[str, Callable[[], object]]] = [
        ("caption_blocked_terms", lambda: _check_terms(rules.caption_blocked_terms)),
        ("caption_languages", lambda: _check_languages(rules.caption_languages)),
        ("url_block_hosts", lambda: host_set(tuple(rules.url_block_hosts))),
        ("url_allow_hosts", lambda: host_set(tuple(rules.url_allow_hosts))),
        *((field, partial(load_blocklist, kind, path, rules.files)) for field, kind, path in _blocklists(rules)),
        ("custom", lambda: [load_custom_rule(name, search) for name in rules.custom]),
    ]
    problems = []
    for field, check in checks:
        try:
            check()
        except (ValueError, OSError) as error:
            problems.append(f"rules.{field}: {error}")
    if problems:
        raise ValueError("\n".join(problems))


def describe_blocklists(rules: SourceRules) -> list[str]:
    """The number of entries in each blocklist, one line per list."""
    return [
        f"{field}: {counted(load_blocklist(kind, path, rules.files).num_entries, _NOUNS[kind])} from {path}"
        for field, kind, path in _blocklists(rules)
    ]


def _check_terms(terms: list[str]) -> None:
    for pattern in blocked_term_patterns(tuple(terms)):
        pc.match_substring_regex(pa.array([""]), pattern)  # compiles it


def _check_languages(codes: list[str]) -> None:
    for code in codes:
        if code.lower() not in LANGUAGES:
            close = difflib.get_close_matches(code.lower(), LANGUAGES, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"{code!r} is not the ISO 639-1 code of a language that can be detected{hint}")


def _blocklists(rules: SourceRules) -> list[tuple[str, DigestKind, str]]:
    """(field, kind, path) of each blocklist that is set."""
    fields: dict[str, DigestKind] = {"url_blocklist": "url", "md5_blocklist": "md5", "sha256_blocklist": "sha256"}
    return [(field, kind, path) for field, kind in fields.items() if (path := getattr(rules, field)) is not None]
