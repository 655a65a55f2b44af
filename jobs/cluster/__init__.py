"""Shards on a Ray cluster: the pools, the scheduler, the actors, and submitted jobs.

A plan's shards enter, one outcome per shard leaves.
The only room that imports ray.
"""
