"""Stores shards on disk: writes, commits and reads them back, with their generations and subsets.

Input: finished tables. Output: Parquet, tars and manifests, which are also read back as tables.
"""
