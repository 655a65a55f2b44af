"""Checks the files on disk: reads all of them and recomputes a sample of the scores.

Input: an output folder. Output: a report.
"""
