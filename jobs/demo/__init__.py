"""`pairmill demo`: a small hostile web with known truth, built into a dataset and compared with the truth.

A seed enters; a dataset, a page and a verdict leave.
"""
