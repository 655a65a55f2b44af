"""Does the work itself, without Ray: a shard's rows pass through the stages of `stages/pipelines.py`.

Input: planned rows. Output: committed shards, subsets, exports and training batches. Imports only `schemas`.
"""
