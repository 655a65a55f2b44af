"""Schemas of rows, shards and jobs. Imports only pyarrow and pydantic."""
