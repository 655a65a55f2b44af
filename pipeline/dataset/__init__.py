"""Writes, commits and reads back shards, with their generations and subsets.

Input: finished tables. Output: Parquet files, tars and manifests, which can be read back as tables.
"""
