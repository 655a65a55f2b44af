"""The version, where it can be read without an installation: a submitted job ships the code alone."""

VERSION = "0.1.0"
