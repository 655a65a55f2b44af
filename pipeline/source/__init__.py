"""Turns any input into planned rows.

Input: files, folders, tars and lists of URLs. Output: the plan, and the rows of each shard.
"""
