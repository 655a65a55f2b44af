"""The local web app of `pairmill explore`: filters with live counts, pictures, rejects, duplicates, search and
labels.

Input: an output folder. Output: pages for one person on this machine, and `labels/NAME.parquet`.
Imports `pages`, `search`, `reader`, `select` and `dataset`; `jobs` passes in the function that runs a select job.
"""
