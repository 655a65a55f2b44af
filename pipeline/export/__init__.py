"""Writes subsets as files for other tools: WebDataset tars, Parquet, and the layouts of clip-retrieval and DataComp.

A subset of a finished dataset enters; files in a folder of their own leave.
"""
