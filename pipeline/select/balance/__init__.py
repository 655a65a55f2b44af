"""Implements the step `balance`: counts the rows of each entry, such as a concept, and drops rows of frequent ones."""
