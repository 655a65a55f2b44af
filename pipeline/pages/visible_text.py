"""Makes untrusted text safe to look at: bounded, and without characters that hide or reorder what follows them."""

import re

_DECEPTIVE_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ue000-\uf8ff\U000e0000-\U000e0fff]"
)
"""Control, direction, invisible and private-use characters."""


def visible_text(text: str, max_chars: int) -> str:
    """The text in at most `max_chars` characters, the last of them an ellipsis if it was longer. Deceptive characters
    become U+FFFD. The result is plain text, not HTML: escape it wherever it goes."""
    short = text[: max_chars + 1]
    if len(short) > max_chars:
        short = short[: max_chars - 1] + "…"
    return _DECEPTIVE_CHARACTERS.sub("\ufffd", short)
