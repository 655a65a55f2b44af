"""`pairmill demo`: builds a dataset from a small hostile web and compares it with the known truth.

Takes a seed; writes a dataset and a contact sheet, and prints a comparison.
"""
