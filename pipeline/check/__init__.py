"""Checks the files on disk: reads every one, and recomputes a sample of the scores.

An output folder enters, a report leaves.
"""
