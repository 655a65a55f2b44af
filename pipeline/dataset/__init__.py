"""Stores shards on disk: writes, commits and reads them back, with their generations and subsets.

Finished tables enter; Parquet, tars and manifests leave, and come back as tables.
"""
