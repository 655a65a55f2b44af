"""Prints the commands that add a model or a score to a dataset again.

They are made from the card, or from the footers of the column files if the card is lost or damaged. Anyone may have
written these, so their values must be valid settings.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.integrity import DamagedFileError
from pairmill.pipeline.dataset.parquet import read_schema
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.scores import ScoreConfig

_DAMAGED = (AttributeError, DamagedFileError, KeyError, RecursionError, TypeError, ValueError)
"""Errors from a card or footer that is damaged or not pairmill's."""
_UNKNOWN = "the `pairmill score` or `pairmill embed --add-model` that made it"


def score_footer(name: str, score: ScoreConfig) -> dict[str, object]:
    """The footer of a score's column files."""
    return {"score": name, "settings": score.model_dump(mode="json", exclude_defaults=True)}


def score_command(root: str, name: str, settings: object) -> str:
    """The command that adds a score. `settings`: as in `score_footer`."""
    return pairmill_command("score", root, name, "--score", json.dumps(settings))


def command_to_continue(store: Store, name: str, kind: Literal["model", "score"]) -> str:
    """The command that adds a model or a score, whose card is there, to the shards that lack it."""
    if kind == "score":  # its settings are in the card
        return pairmill_command("score", store.root, name)
    with suppress(*_DAMAGED, FileNotFoundError):
        # the footers contain the precision of the workers, but on a cluster the card may say `auto`
        return _model_command(store, name, json.loads(store.read(f"columns/{name}/model.json")))
    return command_of(store, name)


def command_of(store: Store, name: str) -> str:
    """The command that made a folder in `columns/` whose card is lost, or words for it if no column file can tell."""
    for file in store.list(f"columns/{name}"):
        if file.endswith(".parquet"):
            with suppress(*_DAMAGED, FileNotFoundError):
                return _recorded_command(store, name, f"columns/{name}/{file}")
    return _UNKNOWN


def card_again(store: Store, name: str) -> str:
    """The remedy for a damaged card. The columns stay, since the command refuses those of another model or score."""
    return f"move it elsewhere and run: {command_of(store, name)}"


def _recorded_command(store: Store, name: str, path: str) -> str:
    """The command that made a column file, according to its footer. Raises one of `_DAMAGED` or FileNotFoundError."""
    footer = json.loads((read_schema(store, path).metadata or {})[b"pairmill"])
    if "score" not in footer:
        (model,) = footer["models"]
        return _model_command(store, name, model)
    if "settings" not in footer:  # from before 0.2
        return pairmill_command("score", store.root, name, "--score", "SETTINGS")
    score = ScoreConfig.model_validate(footer["settings"])
    return score_command(store.root, name, score_footer(name, score)["settings"])


def _model_command(store: Store, name: str, recorded: Mapping[str, Any]) -> str:
    model = ModelConfig(alias=name, **{field: recorded[field] for field in ("name", "pretrained", "dtype")})
    added = f"{model.name}:{model.pretrained}" if model.pretrained else model.name
    precision = [] if model.dtype == "auto" else ["--dtype", model.dtype]
    return pairmill_command("embed", store.root, "--add-model", added, "--alias", name, *precision)
