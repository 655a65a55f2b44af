"""Subsets as the files that other tools read: WebDataset tars, Parquet, and the layouts of clip-retrieval and DataComp.

A subset of a finished dataset enters; files in a folder of their own leave.
"""
