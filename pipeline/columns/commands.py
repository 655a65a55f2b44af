"""Prints the commands that add a model or a score to a dataset again.

They are made from the footers of the column files, because the card may be the file that is lost or damaged.
"""

import json
from collections.abc import Mapping
from typing import Any

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.integrity import DamagedFileError
from pairmill.pipeline.dataset.parquet import read_schema
from pairmill.schemas.job.scores import ScoreConfig

_UNKNOWN = "the `pairmill score` or `pairmill embed --add-model` that made it"


def score_footer(name: str, score: ScoreConfig) -> dict[str, object]:
    """The footer of a score's column files."""
    return {"score": name, "settings": score.model_dump(mode="json", exclude_defaults=True)}


def score_command(root: str, name: str, settings: object) -> str:
    """The command that adds a score. `settings`: as in `score_footer`."""
    return pairmill_command("score", root, name, "--score", json.dumps(settings))


def command_of(store: Store, name: str, has_card: bool = False) -> str:
    """The command that made a folder in `columns/`, or words for it if none of its files can tell. `has_card`: whether
    the card is intact, so that a score needs no settings."""
    footer = _footer(store, name)
    if "score" in footer and has_card:
        return pairmill_command("score", store.root, name)
    if "settings" in footer:
        return score_command(store.root, name, footer["settings"])
    if "score" in footer:  # from before 0.2
        return pairmill_command("score", store.root, name, "--score", "SETTINGS")
    try:
        (model,) = footer["models"]
        added = f"{model['name']}:{model['pretrained']}" if model["pretrained"] else model["name"]
        dtype = model["dtype"]
        if has_card:  # on a cluster, it can be `auto`
            dtype = json.loads(store.read(f"columns/{name}/model.json")).get("dtype", dtype)
        precision = [] if dtype == "auto" else ["--dtype", dtype]
        return pairmill_command("embed", store.root, "--add-model", added, "--alias", name, *precision)
    except (AttributeError, KeyError, TypeError, ValueError):  # damaged, or not pairmill's
        return _UNKNOWN


def card_again(store: Store, name: str) -> str:
    """The remedy for a damaged card. The columns stay, since the command refuses those of another model or score."""
    return f"move it elsewhere and run: {command_of(store, name)}"


def _footer(store: Store, name: str) -> Mapping[str, Any]:
    """What the first readable column file says about its columns. Empty if there is none."""
    for file in store.list(f"columns/{name}"):
        if file.endswith(".parquet"):
            try:
                metadata = read_schema(store, f"columns/{name}/{file}").metadata or {}
                footer = json.loads(metadata.get(b"pairmill", b"{}"))
            except (DamagedFileError, FileNotFoundError, ValueError):
                continue
            if isinstance(footer, dict):
                return footer
    return {}
