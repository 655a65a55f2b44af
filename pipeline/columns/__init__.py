"""Adds columns beside a finished dataset: one more model's scores and embeddings.

Input: committed pairs. Output: `columns/ALIAS/`, with the same rows as `pairs/`, in the same order.
"""
