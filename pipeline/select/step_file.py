"""Computes the checksum of a file that a step names, so that all processes read the same version of the file."""

from pairmill.pipeline.common.files import S3_SCHEMES, Files, is_remote, why_no_file
from pairmill.pipeline.select.step_error import StepError


def digest_of(files: Files, uri: str) -> str:
    """The BLAKE2b of the file in its current state: 32 hex characters. Raises StepError if it cannot be read."""
    if is_remote(uri) and not uri.startswith(S3_SCHEMES):
        raise StepError(f"{uri} cannot be read: use a local file or an s3:// URL")
    if why := why_no_file(uri):
        raise StepError(f"{uri} {why}")
    try:
        return files.checksum(uri)[0]
    except OSError as error:
        raise StepError(f"{uri} cannot be read: {getattr(error, 'strerror', None) or error}") from None
