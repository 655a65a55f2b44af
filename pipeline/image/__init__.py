"""THE place where bytes become pixels (decode.py), and pixels become the stored picture (compress.py).

Input: bytes of any kind. Output: 8-bit RGB pixels with the EXIF orientation applied, or a stored picture with its hash.
Imports `common` and `schemas` only.
"""
