"""Compares a file with its record."""

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.schemas.manifest import DataFile


def check_file(store: Store, file: DataFile) -> str | None:
    """The problem with a file. None if it has not changed since it was committed."""
    try:
        digest, num_bytes = store.checksum(file.path)
    except FileNotFoundError:
        return f"{file.path} is missing"
    if num_bytes != file.num_bytes:
        size = f"{counted(num_bytes, 'byte')} instead of {file.num_bytes:,}"
        return f"{file.path} has changed since it was committed: {size}"
    if digest != file.blake2b:
        return f"{file.path} has changed since it was committed: its checksum differs"
    return None
