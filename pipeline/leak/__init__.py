"""Finds the rows of a dataset that overlap with an evaluation set.

The evaluation set is small, but the dataset is not. So each evaluation picture is hashed in many variants (mirrored,
cropped), and the single hash that the dataset has for each row is looked up among these hashes.
"""
