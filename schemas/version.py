"""The version, readable without an installation: a submitted job ships only the code."""

VERSION = "0.1.0"
