"""A torch dataset over finished shards: each pair once per epoch.

An output folder and a subset enter, batches leave.
"""
