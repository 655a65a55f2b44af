"""THE place where a URL becomes bytes.

URLs enter; one outcome per URL leaves: bytes, or a Status with its evidence.
The only room that imports the HTTP client and img2dataset.
"""
