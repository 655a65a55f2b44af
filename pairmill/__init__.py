"""From lists of web pictures and captions to scored, filtered training data for CLIP-like models."""
