"""Finds the rows of a dataset that overlap with an evaluation set.

The evaluation set is small, the dataset is not. So each evaluation picture is hashed in many variants (mirrored,
cropped), and each row is looked up among them by the one hash that the dataset has of it.
"""
