"""Processes shards on a Ray cluster: the pools, the scheduler, the actors, and submitted jobs.

Takes the shards of a plan and returns one outcome per shard. The only folder that imports ray.
"""
