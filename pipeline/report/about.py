"""What a dataset is: its source, models and thresholds."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pairmill.pipeline.columns.added_model import read_card
from pairmill.pipeline.dataset.parquet import read_schema
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.schemas.job.rules import RulesConfig
from pairmill.schemas.subset import Subset

_COMPARISON = re.compile(r"\s*(\w+)\s*>=?\s*(-?\d+(?:\.\d+)?)\s*")


@dataclass(frozen=True)
class ModelFacts:
    """A model that scored the pairs."""

    alias: str
    name: str
    weights_sha256: str | None
    dtype: str | None


def models_of(snapshot: Snapshot) -> list[ModelFacts]:
    """The models of the build, then the added ones."""
    with snapshot.errors():
        metadata = read_schema(snapshot.store, snapshot.chunk.shards[0].pairs).metadata or {}
        found = [_model(each) for each in json.loads(metadata.get(b"pairmill", b"{}")).get("models", [])]
        for alias in snapshot.aliases:
            card = read_card(snapshot.store, alias)
            found.append(ModelFacts(alias, _name(card.name, card.pretrained), None, card.dtype))
    return found


def _model(values: Mapping[str, str | None]) -> ModelFacts:
    name = _name(values.get("name"), values.get("pretrained"))
    return ModelFacts(str(values.get("alias")), name, values.get("weights_sha256"), values.get("dtype"))


def _name(name: str | None, pretrained: str | None) -> str:
    return " ".join(filter(None, [name, pretrained]))


def build_thresholds(rules: RulesConfig, scores: Sequence[str]) -> dict[str, float]:
    """Column -> minimum score that the build kept."""
    if rules.min_similarity is None:
        return {}
    if isinstance(rules.min_similarity, dict):
        return {f"similarity_{alias}": value for alias, value in rules.min_similarity.items()}
    return {name: rules.min_similarity for name in scores if name.startswith("similarity")}


def subset_thresholds(subset: Subset, scores: Sequence[str]) -> dict[str, float]:
    """Column -> minimum score of the last step that sets one: `top` by a column, or `where` with `COLUMN >= NUMBER`."""
    found: dict[str, float] = {}
    for step, report in zip(subset.steps, subset.reports[-len(subset.steps) :] if subset.steps else [], strict=True):
        if step.top and report.threshold is not None:
            found[step.top.by] = report.threshold
        for part in re.split(r"\sand\s", step.where or ""):
            if match := _COMPARISON.fullmatch(part):
                found[match[1]] = float(match[2])
    if "similarity" in found and (first := next((name for name in scores if name.startswith("similarity_")), None)):
        found.setdefault(first, found["similarity"])
    return {name: value for name, value in found.items() if name in scores}
