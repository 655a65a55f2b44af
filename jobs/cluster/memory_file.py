"""Files in memory, without a name."""

import os
import sys
import tempfile


def new_memory_file() -> int:
    """A descriptor of a new one, which the caller closes. Where the system has none, it is a deleted file on disk."""
    if sys.platform == "linux":
        return os.memfd_create("pairmill")
    with tempfile.TemporaryFile() as file:  # already unlinked
        return os.dup(file.fileno())
