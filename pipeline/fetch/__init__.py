"""THE place where a URL becomes bytes: fetch_url.py, which downloader.py calls for every URL of a shard.

URLs enter; one FetchOutcome per URL leaves: the stored picture, or a Status with its evidence.
Imports `rules`, `source`, `image`, `common` and `schemas`. Only this room makes HTTP requests or imports img2dataset.
"""
