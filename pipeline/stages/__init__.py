"""The steps of a shard's way, in order, and the plain loop over them.

A planned shard enters the first stage and a manifest leaves the last one. `pipelines.py` lists the stages of each
command; Ray runs the very same objects. Imports every other room of pipeline but check, export and feed.
"""
