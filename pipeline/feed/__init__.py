"""Provides `PairDataset`, a PyTorch dataset over finished shards, which yields each pair once per epoch.

Input: an output folder and a subset. Output: batches.
"""
