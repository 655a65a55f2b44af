"""What a row, a shard and a job look like.

Imports pyarrow and pydantic alone.
"""
