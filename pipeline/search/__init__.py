"""Finds the pairs whose embeddings are most similar to a text, a picture or another pair.

Input: a Snapshot, and what to look for. Output: row indices and similarities, and a page of results. Imports `reader`,
`encode` and `pages`. The only module that imports faiss.
"""
