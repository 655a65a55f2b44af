"""Whether what is on disk is right: every file read again, a sample of the scores computed again.

An output folder enters, a report leaves.
"""
