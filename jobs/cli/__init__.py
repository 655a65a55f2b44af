"""The `pairmill` command: flags, job files and messages.

Takes a command line; prints text or JSON and returns an exit status.
Imports every other part of jobs. Nothing imports it.
"""
