"""The functions behind `import pairmill`: the commands, with keywords or a job model.

Paths, keywords and job models enter; result objects leave. Imports the other jobs, but no command line.
"""
