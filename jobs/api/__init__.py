"""Implements the functions behind `import pairmill`: the commands, with keyword arguments or a job object.

They take paths, keyword arguments and job objects, and return result objects. Imports the other jobs but not the
command line.
"""
