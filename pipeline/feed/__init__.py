"""Provides `PairDataset`, a PyTorch dataset over finished shards, which yields each pair once per epoch.

Input: an output folder or a mixture, and optionally a subset. Output: rows or batches.
"""
