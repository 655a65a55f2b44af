"""Checks that a dataset has the scores that a preset selects by, with the right kind, the preset's settings and
the model that the preset was calibrated for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pairmill.pipeline.columns.added_columns import AddedColumns
from pairmill.pipeline.columns.score_card import read_score_card
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.scores import ScoreConfig, merged, required_settings
from pairmill.schemas.preset import Preset


@dataclass(frozen=True)
class PresetScores:
    """The scores of a preset, for one dataset."""

    name: str
    preset: Preset
    store: Store
    added: AddedColumns
    models: Sequence[str]
    """Aliases of the dataset's models. If the preset requires a model, it comes first."""

    def check(self) -> None:
        """Raise JobError, which says what to do, if the dataset lacks a score or has a different one of that name."""
        there = {each.name for each in self.added.scores}
        if missing := [each for each in self.preset.scores if each not in there]:
            commands = "\n".join(f"  {self._command(each)}" for each in missing)
            raise JobError(
                f"the preset {self.name!r} selects by scores that {self.store.root} lacks; add them first:\n{commands}"
            )
        for each in self.preset.scores:
            if differences := self._differences(each):
                raise JobError(
                    f"the score {each!r} in {self.store.root} is not the one that the preset {self.name!r} selects by. "
                    "What differs:\n" + "\n".join(f"  {line}" for line in differences) + "\n"
                    f"Move columns/{each} elsewhere and add the preset's score, or select with your own steps."
                )

    def _command(self, score: str) -> str:
        """The command that adds a missing score."""
        words = ["score", self.store.root, score]
        if any(each.name == score and each.kind == "score" for each in self.added.incomplete):
            return pairmill_command(*words)
        ((kind, given),) = self.preset.scores[score].items()
        settings = [f"{kind}.{field}={field.upper()}" for field in required_settings(kind, given)]
        if len(self.models) > 1 and (place := _model_of(kind, given)):
            settings.append(f"{kind}.{place}={self.models[0]}")
        words += ["--preset", self.name, *(word for each in settings for word in ("--set", each))]
        return pairmill_command(*words)

    def _differences(self, score: str) -> list[str]:
        card = read_score_card(self.store, score)
        ((kind, given),) = self.preset.scores[score].items()
        if card.score.kind != kind:
            return [f"kind: {card.score.kind} in the dataset, {kind} in the preset"]
        there = getattr(card.score, kind).model_dump(mode="json")
        wanted: Any = given
        if self.preset.requires_model is not None and (place := _model_of(kind, given)):
            wanted = merged(wanted, _nested(place, self.models[0]))
        expected = getattr(ScoreConfig.model_validate({kind: merged(there, wanted)}), kind).model_dump(mode="json")
        free = {path.removeprefix(f"{kind}.") for path in self.preset.may_differ}
        return [
            f"{kind}.{path}: {old!r} in the dataset, {new!r} in the preset"
            for path, old, new in _leaves(there, expected)
            if old != new and path not in free
        ]


def _model_of(kind: str, given: Mapping[str, object]) -> str | None:
    """The name of the setting for the model whose embeddings a score reads; None if the score reads no embeddings."""
    if kind == "text":
        return "mask.model" if "mask" in given else None
    return "model" if kind in ("head", "classes", "neg_clip", "norm_sim", "density") else None


def _nested(path: str, value: object) -> dict[str, object]:
    first, _, rest = path.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _leaves(old: Mapping[str, Any], new: Mapping[str, Any], start: str = "") -> list[tuple[str, object, object]]:
    """(dotted path, old value, new value) of every setting."""
    found: list[tuple[str, object, object]] = []
    for name in new:
        if isinstance(old[name], dict) and isinstance(new[name], dict):
            found += _leaves(old[name], new[name], f"{start}{name}.")
        else:
            found.append((f"{start}{name}", old[name], new[name]))
    return found
