"""Implements the functions behind `import pairmill`: the commands, with keywords or a job model.

They take paths, keywords and job models, and return result objects. Imports the other jobs, but not the command line.
"""
