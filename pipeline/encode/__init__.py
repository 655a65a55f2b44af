"""Pictures and captions become vectors.

Decoded pixels and captions enter; float16 embeddings and float32 similarities leave.
The only room that imports open_clip.
"""
