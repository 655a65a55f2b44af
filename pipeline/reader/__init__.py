"""Reads a dataset as one table: its columns, pictures and subsets.

An output folder enters; Arrow tables, rows and PIL pictures leave. Imports `source`, `columns`, `dataset` and `image`.
"""
