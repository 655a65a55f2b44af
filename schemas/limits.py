"""Defines limits on untrusted text. A row that exceeds one is rejected with a Status."""

MAX_URL_BYTES = 8_192
"""Most servers reject longer URLs: RFC 9110, section 4.1 recommends supporting at least 8,000 octets."""

MAX_CAPTION_BYTES = 262_144
"""A default shard of captions of this length still fits in one Arrow string array (2 GiB)."""
