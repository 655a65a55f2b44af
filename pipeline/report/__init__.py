"""Writes the report: one HTML file with pictures and plots, for people who choose thresholds by eye.

Takes an output folder, finished or not, and perhaps a subset of it; yields one file that loads nothing.
Imports `pages`, `reader` and `select`.
"""
