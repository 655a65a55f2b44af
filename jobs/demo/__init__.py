"""`pairmill demo`: builds a dataset from a small hostile web and compares it with the known truth.

A seed enters; a dataset, a contact sheet and a comparison leave.
"""
