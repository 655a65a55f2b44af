"""Finds the pairs whose embeddings are most similar to a text, a picture or another pair.

Input: a Snapshot, and what to look for. Output: row indices and similarities. Imports `reader` and what is below it.
The only module that imports faiss.
"""
