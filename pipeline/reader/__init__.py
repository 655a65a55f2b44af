"""Reads a dataset as one table: its columns, pictures and subsets.

Input: an output folder. Output: Arrow tables, rows and PIL pictures.
Imports `source`, `columns`, `dataset` and `image`.
"""
