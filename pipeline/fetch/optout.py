"""Reads X-Robots-Tag, the header with which a server forbids the use of its pictures.

Syntax: https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag#xrobotstag . DeviantArt introduced
`noai` and `noimageai` in November 2022. img2dataset honors the same directives except `none`, which is short for
`noindex, nofollow`.
"""

import re
from collections.abc import Iterable

OPT_OUT_DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})

_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_PRODUCT_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)  # RFC 9110, sections 10.1.5 and 5.6.2
_QUOTES = {ord(quote): None for quote in "\"'"}


def agent_token(user_agent: str) -> str:
    """The product name by which a header or robots.txt can address us: `pairmill` in `pairmill/0.1 (+https://...)`, and
    also in `pairmill (+https://...)` and `Pairmill, pictures@example.org`."""
    name = _PRODUCT_NAME.match(user_agent.strip())
    return (name[0] if name else user_agent.strip()).lower()


def opt_out_directive(values: Iterable[str], token: str) -> str | None:
    """The first directive in X-Robots-Tag header values that opts out of our use, or None.

    Directives after `token:` only apply to the crawler with that token, until the next token; directives before the
    first token apply to everyone. Semicolons, spaces and quotes between directives, and a version after the token, are
    mistakes, but leave no doubt about what is meant.
    """
    for value in values:
        is_for_us = True
        for part in re.split("[,;]", value.lower().translate(_QUOTES)):
            names, colon, rest = (piece.strip() for piece in part.partition(":"))
            # If there is a space before the colon, the colon belongs to the time in a date.
            if colon and names not in _WITH_VALUE | OPT_OUT_DIRECTIVES and " " not in names:
                is_for_us = names.partition("/")[0] in ("*", token)
                names = rest
            found = [name for name in names.split() if name in OPT_OUT_DIRECTIVES]
            if is_for_us and found:
                return found[0]
    return None
