"""Data files that no manifest names, left by attempts that died or were beaten."""

import re

from pairmill.pipeline.common.storage import Store
from pairmill.schemas.manifest import ShardManifest

DATA_FOLDERS = ("pairs", "rejects", "images")
DATA_NAME = re.compile(r"(?P<shard>\d{9,})(?:\.g(?P<generation>\d+))?(?:\.(?P<attempt>[0-9a-f]{32}))?\.(?:parquet|tar)")


class StrayFiles:
    """Data files that no manifest names and none can come to name.

    Files of a shard or generation without a manifest stay: a worker of a dead driver may be about to commit them.
    Call `remove` with the newest manifests; older generations' files are theirs and stay too.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.rivals: dict[tuple[int, int], list[str]] = {}
        """(shard, generation) -> files where an attempt found the plain name taken: few, so memory stays small."""
        for folder in DATA_FOLDERS:
            names = [(name, match) for name in store.list(folder) if (match := DATA_NAME.fullmatch(name))]
            contested = {_slot(match) for _, match in names if match["attempt"]}
            for name, match in names:
                if _slot(match) in contested:
                    self.rivals.setdefault(_slot(match), []).append(f"{folder}/{name}")

    def remove(self, manifest: ShardManifest) -> list[str]:
        """Delete what this manifest proves stray; returns the names."""
        named = {file.path for file in manifest.files.values()}
        suspects = self.rivals.get((manifest.shard, manifest.generation), [])
        if "images" not in manifest.files:  # the dead attempt may have had pictures where the winner had none
            suspects = [*suspects, f"images/{manifest.name.removesuffix('.json')}.tar"]
        strays = [name for name in suspects if name not in named and self.store.exists(name)]
        for name in strays:
            self.store.delete(name)
        return strays


def _slot(match: re.Match[str]) -> tuple[int, int]:
    return int(match["shard"]), int(match["generation"] or 0)
