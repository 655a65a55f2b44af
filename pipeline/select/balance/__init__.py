"""Counts the entries of rows, and thins out the frequent ones: the step `balance`."""
