"""The `pairmill` command: flags, job files and messages.

A command line enters; text, JSON and an exit status leave.
Imports every other part of jobs. Nothing imports it.
"""
