"""Contains what users run: commands, and the cluster they run on.

Takes job models or command lines and returns results and exit statuses. Imports pipeline and schemas.
"""
