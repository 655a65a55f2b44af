"""Shards on disk: write, commit, read back, generations, subsets.

Finished tables enter; Parquet, tars and manifests leave, and come back as tables.
"""
