"""Defines the stages that process a shard, in order, and the plain loop over them.

A planned shard enters the first stage and a manifest leaves the last one. `pipelines.py` lists the stages of each
command; Ray runs the same objects. Imports every other room of `pipeline` except `check`, `export` and `feed`.
"""
