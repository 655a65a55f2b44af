"""Contains the commands that users run and the code that runs them on a cluster.

Takes job models or command lines; returns results and exit statuses. Imports pipeline and schemas.
"""
