"""Reads corpora that need no download: tars, folders of pictures, Parquet with pictures, pairmill's own outputs."""
