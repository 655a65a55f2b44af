"""THE place where a URL becomes bytes: fetcher.py, called by download.py.

URLs enter; one FetchOutcome per URL leaves: the stored picture, or a Status with its evidence.
Imports `rules`, `source`, `image`, `common` and `schemas`; the only room that imports the HTTP client and img2dataset.
"""
