"""Implements the functions behind `import pairmill`: the commands, with keyword arguments or a job object.

Takes paths, keyword arguments and job objects; returns result objects. Imports the rest of `jobs`, except the command
line.
"""
