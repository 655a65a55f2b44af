"""Provides a torch dataset over finished shards, which serves each pair once per epoch.

Input: an output folder and a subset. Output: batches.
"""
