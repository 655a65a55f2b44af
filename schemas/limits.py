"""Limits on text that strangers write, each defined once. A row beyond one of them is refused with a Status."""

MAX_URL_BYTES = 8_192
"""Longer URLs fail at most servers: RFC 9110, section 4.1 asks for 8,000 octets at least."""

MAX_CAPTION_BYTES = 262_144
"""A default shard of captions of this length still fits into one Arrow string array (2 GiB)."""
