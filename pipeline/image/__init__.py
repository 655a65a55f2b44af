"""THE place where bytes become pixels (decode.py), and pixels become the stored picture (compress.py).

Bytes of any kind enter; upright 8-bit RGB pixels, or a stored picture with its hash, leave.
Imports `common` and `schemas` only.
"""
