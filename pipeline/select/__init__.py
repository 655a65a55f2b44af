"""Choosing over the whole set: thresholds, top fractions, duplicates and samples, on narrow columns alone."""
