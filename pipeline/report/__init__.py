"""Makes pages with pictures and plots, for people who choose thresholds by eye.

A finished output folder enters, one HTML file leaves.
"""
