"""Compares the number of files that a process may open with the number that concurrent requests need."""

import resource

from pairmill.pipeline.common.faults import LocalFault
from pairmill.pipeline.fetch.addresses import MAX_ADDRESSES

_OTHER_FILES = 256  # files of name look-ups, Python and Ray


def check_file_limit(concurrency: int) -> None:
    """Raise LocalFault if this machine does not let a process open enough files for this many concurrent requests."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = concurrency + _OTHER_FILES
    if hard == resource.RLIM_INFINITY or hard >= required:
        return
    most = hard - _OTHER_FILES
    remedy = f", or lower fetch.concurrency to {most}" if most > 0 else ""
    raise LocalFault(
        f"a process may open only {hard} files here, but fetch.concurrency={concurrency} needs {required}: raise the "
        f"limit (ulimit -n){remedy}"
    )


def raise_file_limit(concurrency: int) -> None:
    """Let this process open enough files for this many concurrent requests. Raises LocalFault if that is not allowed.

    If the machine allows it, leaves room for requests that connect to several addresses at once.
    """
    check_file_limit(concurrency)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = (1 + MAX_ADDRESSES) * concurrency + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
