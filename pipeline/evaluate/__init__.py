"""Measures embeddings and scores against labels, and trains probes.

Input: stored embeddings, scores and labels. Output: numbers with 95 % intervals, a trained head, a page. Nothing here
writes to the dataset.
"""
