"""Whether this process uses Ray already, told without importing it."""

import sys


def uses_ray() -> bool:
    """Whether this process has started or joined Ray, unless it was for a job of another thread."""
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    if is_initialized is None or not is_initialized():
        return False
    session = sys.modules.get("pairmill.jobs.cluster.session")
    return session is None or not session.is_open_in_another_thread()
