"""Makes pages with pictures and plots, for people who choose thresholds by eye.

Input: a finished output folder. Output: one HTML file.
"""
