"""Reads corpora that need no download: tars, folders of pictures, Parquet files with pictures, and pairmill outputs."""
