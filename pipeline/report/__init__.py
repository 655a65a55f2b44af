"""Pages with pictures and plots, for people who choose thresholds by looking.

A finished output folder enters, one HTML file leaves.
"""
