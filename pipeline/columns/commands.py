"""Prints the commands that add a model or a score to a dataset again.

They are made from the card, or from the footers of the column files if the card is lost or damaged. Anyone may have
written these, so their values must be valid settings.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.integrity import DamagedFileError
from pairmill.pipeline.dataset.parquet import read_schema
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.scores import ScoreConfig

STATE_NAME = re.compile(r"state\.([0-9a-f]{32})\.safetensors")
"""The name of the state of a score, in its folder."""
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
    return next(_recorded_commands(store, name), (_UNKNOWN, False))[0]


def without_card(store: Store, name: str) -> str:
    """The remedy for a folder in `columns/` whose card is lost."""
    return _again(store, name, "")


def card_again(store: Store, name: str) -> str:
    """The remedy for a damaged card. The columns stay, since the command refuses those of another model or score."""
    return _again(store, name, "move it elsewhere and ")


def _again(store: Store, name: str, move_card: str) -> str:
    """The values of a score whose state is lost too have to be computed again."""
    command, is_score = next(_recorded_commands(store, name), (_UNKNOWN, False))
    if is_score and not any(map(STATE_NAME.fullmatch, store.list(f"columns/{name}"))):
        return f"move columns/{name} elsewhere and run: {command}"
    return f"{move_card}run: {command}"


def _recorded_commands(store: Store, name: str) -> Iterator[tuple[str, bool]]:
    """The command that made each column file, according to its footer, and whether it adds a score."""
    for file in store.list(f"columns/{name}"):
        if file.endswith(".parquet"):
            with suppress(*_DAMAGED, FileNotFoundError):
                footer = json.loads((read_schema(store, f"columns/{name}/{file}").metadata or {})[b"pairmill"])
                yield _recorded_command(store, name, footer), "score" in footer


def _recorded_command(store: Store, name: str, footer: Mapping[str, Any]) -> str:
    """The command that a footer records. Raises one of `_DAMAGED`."""
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
