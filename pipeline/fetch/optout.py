"""Reads X-Robots-Tag, the header with which a server forbids the use of its pictures.

Syntax: https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag#xrobotstag . DeviantArt introduced
`noai` and `noimageai` in November 2022. img2dataset refuses the same directives except `none`, which is short for
`noindex, nofollow`.
"""

from collections.abc import Iterable

OPT_OUT_DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})

_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def agent_token(user_agent: str) -> str:
    """The product name by which a header can address us: `pairmill` in `pairmill/0.1 (+https://...)`."""
    return user_agent.partition("/")[0].strip().lower()


def opt_out_directive(values: Iterable[str], token: str) -> str | None:
    """The first directive in X-Robots-Tag header values that opts out of our use, or None.

    `token: directive, directive` addresses only that crawler, up to the next token; directives before the first token
    address everyone.
    """
    for value in values:
        is_for_us = True
        for part in value.lower().split(","):
            name, colon, rest = (piece.strip() for piece in part.partition(":"))
            if colon and name not in _WITH_VALUE and " " not in name:  # with a space, it is the time of day in a date
                is_for_us = name in ("*", token)
                name = rest
            if is_for_us and name in OPT_OUT_DIRECTIVES:
                return name
    return None
