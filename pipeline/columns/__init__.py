"""Adds columns beside a finished dataset: one more model's scores and embeddings.

Committed pairs enter; `columns/ALIAS/` leaves, with the same rows as `pairs/` in the same order.
"""
