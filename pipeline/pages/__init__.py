"""What all HTML pages share: the template engine, the style, and untrusted text made visible.

Takes values of any origin; returns HTML in which they are plain text.
"""
