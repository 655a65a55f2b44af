"""What every room leans on: storage, child processes, texts, faults, metrics.

The only room that opens files and S3 objects. Imports schemas alone.
"""
