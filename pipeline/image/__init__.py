"""THE place where bytes become pixels, and pixels the stored picture.

Bytes of any kind enter; upright 8-bit RGB pixels, or a stored picture with its hash, leave.
"""
