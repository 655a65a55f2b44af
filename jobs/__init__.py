"""Contains the commands that users run, and what runs them on a cluster.

Takes job models or command lines and returns results and exit statuses. Imports pipeline and schemas.
"""
