"""What all HTML pages share: the template engine, the style, and safe display of untrusted text.

Takes values of any origin; returns HTML in which they are plain text.
"""
