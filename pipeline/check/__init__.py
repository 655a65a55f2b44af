"""Checks what is on disk: reads every file, and recomputes a sample of the scores.

An output folder enters, a report leaves.
"""
