"""Finds the pairs whose embeddings are most similar to a phrase, a picture or another pair.

Input: a Snapshot and a query. Output: row indices and similarities, and a page of results. Imports `reader`, `encode`
and `pages`. This is the only module that imports faiss.
"""
