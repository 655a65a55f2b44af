"""`pairmill demo`: builds a dataset from a small simulated hostile web and compares it with the ground truth.

Takes a seed; writes a dataset and a report, and prints a comparison.
"""
