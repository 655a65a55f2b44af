"""The work itself, free of Ray: a shard's rows go through the stages of `stages.py`.

Planned rows enter; committed shards, subsets, exports and training batches leave. Imports schemas alone.
"""
