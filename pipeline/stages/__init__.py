"""Defines the stages that process a shard, in order, and the plain loop over them.

Input: a planned shard. Output: its manifest, from the last stage. `pipelines.py` lists the stages of each command; Ray
runs the same objects. Imports every other module of `pipeline` except `check`, `export` and `feed`.
"""
