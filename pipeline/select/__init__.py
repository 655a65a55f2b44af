"""Selects rows of a whole dataset by thresholds, top fractions, duplicates and samples.

Input: narrow columns of finished shards. Output: for each row, the step that dropped it, if any.
"""
