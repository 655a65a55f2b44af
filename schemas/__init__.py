"""Defines the schemas of rows, shards and jobs. Imports only pyarrow and pydantic."""
