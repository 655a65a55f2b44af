"""What a person starts: commands, and the cluster they run on.

A job model or a command line enters, results and exit statuses leave. Imports pipeline and schemas.
"""
