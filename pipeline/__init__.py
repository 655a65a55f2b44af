"""Does the work itself, without Ray: a shard's rows pass through the stages of `stages/pipelines.py`.

Planned rows enter; committed shards, subsets, exports and training batches leave. Imports only `schemas`.
"""
