"""Counts the rows of each entry and drops rows of frequent entries: the step `balance`."""
