"""Provides a torch dataset over finished shards, which serves each pair once per epoch.

An output folder and a subset enter, batches leave.
"""
