"""THE place where pixels and captions become vectors: clip_model.py, called by encoder.py.

Decoded pixels and captions enter; float16 embeddings and float32 similarities leave.
Imports `image`, `common` and `schemas`. Only this room imports open_clip.
"""
