"""`pairmill demo`: builds a dataset from a small simulated hostile web and compares it with the ground truth.

Takes a seed; writes a dataset and a contact sheet, and prints a comparison.
"""
