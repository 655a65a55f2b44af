"""THE place where pixels and captions become vectors: clip_model.py, called by encoder.py.

Input: decoded pixels and captions. Output: float16 embeddings and float32 similarities.
Imports `image`, `common` and `schemas`. Only this module imports open_clip.
"""
