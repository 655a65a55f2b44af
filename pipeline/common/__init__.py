"""Provides the basis of all other packages of `pipeline`: storage, child processes, text, faults and hooks.

Only this package opens S3 objects and the files of inputs and outputs. It imports only `schemas`.
"""
