"""Measures embeddings and scores against labels, and trains probes.

Input: stored embeddings, scores and labels. Output: numbers with their 95 % intervals, a head, a page. Nothing here
writes to the dataset.
"""
