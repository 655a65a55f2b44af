"""What sources.py, plan.py and read.py lean on: text formats, columns, identities, slices of Parquet."""
