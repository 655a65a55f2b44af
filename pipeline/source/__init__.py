"""Turns any input into planned rows.

Files, folders, tars and lists of URLs enter; the plan and the rows of each shard leave.
"""
