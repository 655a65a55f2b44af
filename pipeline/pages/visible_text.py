"""Makes untrusted text safe to display: bounded, and without characters that hide or reorder text."""

import re

_DECEPTIVE_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ue000-\uf8ff\U000e0000-\U000e0fff]"
)
"""Control, bidirectional, invisible and private-use characters."""


def visible_text(text: str, max_chars: int) -> str:
    """The text, shortened to at most `max_chars` characters with an ellipsis at the end. Deceptive characters become
    U+FFFD. The result is plain text, not HTML: escape it before use."""
    short = text[: max_chars + 1]
    if len(short) > max_chars:
        short = short[: max_chars - 1] + "…"
    return _DECEPTIVE_CHARACTERS.sub("\ufffd", short)
