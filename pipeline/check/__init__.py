"""Checks the files on disk: reads every one, and recomputes a sample of the scores.

Input: an output folder. Output: a report.
"""
