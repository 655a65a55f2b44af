"""Corpora that are held already: tars, folders of pictures, Parquet with pictures, pairmill's own outputs."""
