"""Writes subsets as files for other tools: WebDataset tars, Parquet, and the layouts of clip-retrieval and DataComp.

Input: a subset of a finished dataset. Output: files in a separate folder.
"""
