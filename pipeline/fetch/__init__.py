"""THE place where a URL becomes bytes: fetch_url.py, which downloader.py calls for every URL of a shard.

Input: URLs. Output: one FetchOutcome per URL: the stored picture, or a Status with the reason.
Imports `rules`, `source`, `image`, `common` and `schemas`. Only this package downloads pictures or imports img2dataset.
"""
