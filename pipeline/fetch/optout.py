"""What a server says about the use of its pictures: the X-Robots-Tag header.

Form: https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag#xrobotstag . `noai` and `noimageai`
are DeviantArt's, from November 2022; img2dataset refuses the same four and `none` says two of them at once.
"""

from collections.abc import Iterable

REFUSING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})

_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def agent_token(user_agent: str) -> str:
    """The product name by which a header may address us: `pairmill` of `pairmill/0.1 (+https://...)`."""
    return user_agent.partition("/")[0].strip().lower()


def refusing_directive(values: Iterable[str], token: str) -> str | None:
    """The first directive in X-Robots-Tag header values that refuses us, or None.

    `token: directive, directive` speaks to that crawler only, up to the next token; no token speaks to everybody.
    """
    for value in values:
        ours = True
        for part in value.lower().split(","):
            name, colon, rest = (piece.strip() for piece in part.partition(":"))
            if colon and name not in _WITH_VALUE and " " not in name:  # the blank: a time of day inside a date
                ours = name in ("*", token)
                name = rest
            if ours and name in REFUSING:
                return name
    return None
