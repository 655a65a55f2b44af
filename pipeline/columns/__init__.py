"""Columns added beside a finished dataset: one more model's scores and embeddings.

Committed pairs enter; `columns/ALIAS/` leaves, row for row as in `pairs/`.
"""
