"""Finds rows with similar embeddings in a dataset of any size, without comparing all pairs of rows.

Passes over the dataset, in order: `sample` and `centers` cut the space of embeddings into clusters, `assign` says which
clusters each row belongs to, `gather` brings the rows of a cluster together, `near` compares them exactly, and
`resolve` decides which rows go. Why it works this way: docs/decisions/022-semantic-dedup.md.
"""
