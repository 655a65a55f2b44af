"""Encodes pixels and captions as vectors (in clip_model.py, which encoder.py calls). No other package does this.

Input: decoded pixels and captions. Output: float16 embeddings and float32 similarities.
Imports `image`, `common` and `schemas`. Only this package imports open_clip.
"""
