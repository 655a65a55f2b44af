"""Writes the report: one HTML file with pictures and plots, for people who choose thresholds by eye.

Input: an output folder, finished or not, and optionally a subset of it. Output: one file that loads nothing.
Imports `pages`, `reader` and `select`.
"""
