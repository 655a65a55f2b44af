"""What all HTML pages share: the template engine, untrusted text made visible, small pictures, and the style.

Takes a Snapshot and rows of it; yields text and thumbnails for `report` and `explore`.
"""
