"""Defines the version. It is in the code because a submitted job ships only the code, not an installed package."""

VERSION = "0.1.0"
