"""Finds rows with similar embeddings in a dataset of any size, without comparing all pairs of rows.

In order: `SampledVectors` and `find_centers` divide the space of embeddings into clusters, `assign` finds the clusters
of each row, `gather` brings the rows of a cluster together, `near_rows` compares them exactly, and `resolve` decides
which rows to drop. The reasons for this design: docs/decisions/022-semantic-dedup.md.
"""
