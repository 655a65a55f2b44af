"""Lists the versions of the software that affects an output."""

from importlib.metadata import version

from pairmill.pipeline.image import phash
from pairmill.schemas.version import VERSION


def versions() -> dict[str, str]:
    """Versions of the software that affects the output."""
    own = {"pairmill": VERSION, "phash": phash.VERSION}
    return own | {name: version(name) for name in ("pyarrow", "pillow", "open_clip_torch", "torch")}
