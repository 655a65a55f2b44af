"""What every room needs: storage, child processes, texts, faults, hooks.

The only room that opens files and S3 objects. Imports schemas alone.
"""
