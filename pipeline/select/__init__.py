"""Selects rows over the whole dataset: thresholds, top fractions, duplicates and samples.

Narrow columns of finished shards enter; for each row, the step that dropped it leaves.
"""
