"""Provides what every other room builds on: storage, child processes, text, faults, hooks.

The only room that opens files and S3 objects. Imports only `schemas`.
"""
