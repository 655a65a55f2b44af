"""Finds data files that are in no manifest, left behind by attempts that crashed or finished too late."""

import re

from pairmill.pipeline.common.storage import Store
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.manifest import ShardManifest

DATA_FOLDERS = ("pairs", "rejects", "images")
SIZES_NAME = "images/sizes.json"
"""The number of pictures in each tar of a finished build (`sizes_table`)."""
DATA_NAME = re.compile(r"(?P<shard>\d{9,})(?:\.g(?P<generation>\d+))?(?:\.(?P<attempt>[0-9a-f]{32}))?\.(?:parquet|tar)")


def tar_sizes(manifest: ShardManifest, images: ImagesConfig) -> dict[str, int]:
    """The tar of a shard -> number of its pictures. Empty if the shard has no tar."""
    if "images" not in manifest.files:
        return {}
    tar = manifest.files["images"].path.rpartition("/")[2]
    return {tar: manifest.kept if images.store == "kept" else manifest.pairs}


class StrayFiles:
    """Data files that are in no manifest and never will be.

    Files of a shard or generation without a manifest are kept, because a worker of a dead driver may be about to commit
    them. Call `remove` with the newest manifests. Files of older generations are kept too.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.rivals: dict[tuple[int, int], list[str]] = {}
        """(shard, generation) -> data files, only where an attempt found a plain file name taken. This is rare, so the
        dictionary stays small."""
        for folder in DATA_FOLDERS:
            names = [(name, match) for name in store.list(folder) if (match := DATA_NAME.fullmatch(name))]
            contested = {_slot(match) for _, match in names if match["attempt"]}
            for name, match in names:
                if _slot(match) in contested:
                    self.rivals.setdefault(_slot(match), []).append(f"{folder}/{name}")

    def remove(self, manifest: ShardManifest) -> list[str]:
        """Delete the files that this manifest proves to be strays. Returns their names."""
        named = {file.path for file in manifest.files.values()}
        suspects = self.rivals.get((manifest.shard, manifest.generation), [])
        if "images" not in manifest.files:  # another attempt may have stored pictures where the winner had none
            suspects = [*suspects, f"images/{manifest.name.removesuffix('.json')}.tar"]
        strays = [name for name in suspects if name not in named and self.store.exists(name)]
        for name in strays:
            self.store.delete(name)
        return strays


def _slot(match: re.Match[str]) -> tuple[int, int]:
    return int(match["shard"]), int(match["generation"] or 0)
