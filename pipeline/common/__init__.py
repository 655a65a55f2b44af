"""Provides what every other module of `pipeline` builds on: storage, child processes, text, faults, hooks.

The only module that opens files and S3 objects. Imports only `schemas`.
"""
