"""Defines the stages that process a shard, and the plain loop that runs them in order.

Input: a planned shard. Output: its manifest, from the last stage. `pipelines.py` lists the stages of each command; Ray
runs the same objects. Imports every other module of `pipeline` except `check`, `export` and `feed`.
"""
